"""The config.json of RADIO, of its own code on the Hub and of transformers' RadioModel."""

from collections.abc import Mapping
from typing import Any

from vit_registers.errors import CheckpointError


def is_radio(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is RADIO's: the code on the Hub has a class of its own, and no model_type."""
    classes = values.get("architectures")
    is_own = isinstance(classes, list) and "RADIOModel" in classes and not values.get("model_type")
    return is_own or values.get("model_type") == "radio"


def radio_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the image size for which it is loaded as "preferred_size".

    The position table is that of a larger image. Raises CheckpointError if the size is no size.
    """
    said = {name: value for name, value in values.items() if name != "image_size"}
    size = values.get("preferred_resolution", values.get("image_size"))
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if size is None:
        return said | {"model_type": "radio"}
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise CheckpointError(f"config.json cannot be used: the image size is {size!r}: must be pixels")
    return said | {"model_type": "radio", "preferred_size": sides}


def radio_obstacle(settings: Mapping[str, Any]) -> str | None:
    """What this project lacks of a RADIO model; None if nothing."""
    args = settings.get("args")
    name = str(args.get("model")) if isinstance(args, Mapping) else ""
    if name.startswith("eradio"):
        return "E-RADIO's stages of several resolutions"
    if settings.get("vitdet_window_size"):
        return "attention within windows (vitdet_window_size)"
    return None
