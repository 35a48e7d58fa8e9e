"""From operation strings such as "inception_crop(area_min=0.2) | flip" to functions; for both loaders."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_registers.config import lookup
from vit_registers.config.strings import parse_calls
from vit_registers.errors import ConfigError

EXAMPLE = "random_crop(4) | flip"  # of an operation string, for errors
PADDINGS = ("zeros", "reflect")  # what random_crop has around the image; reflect does not repeat the border


class Target(NamedTuple):
    """The images that a chain of operations has to deliver."""

    height: int
    width: int
    channels: int


def check_padding(padding: int, mode: str, target: Target) -> None:
    """Raises ConfigError for a padding of random_crop that is negative, or wider than what it mirrors."""
    lookup(dict.fromkeys(PADDINGS), mode, "random_crop: mode")
    if padding < 0:
        raise ConfigError(f"random_crop: padding={padding}: must be >= 0")
    if mode == "reflect" and padding >= min(target.height, target.width):
        raise ConfigError(
            f"random_crop: padding={padding} mirrors more than images of {target.height} x {target.width} px "
            "have: must be less than their shorter side"
        )


def check_color(name: str, target: Target) -> None:
    """Raises ConfigError if the operation `name`, which requires 3 channels, gets images with others."""
    if target.channels != 3:
        raise ConfigError(f"{name}: the images have {target.channels} channels: must be 3")


def check_ranges(name: str, areas: tuple[float, float], aspects: tuple[float, float]) -> None:
    """Raises ConfigError for ranges of a random part of an image that no part has."""
    if not 0 < areas[0] <= areas[1] <= 1:
        raise ConfigError(f"{name}: area_min={areas[0]}, area_max={areas[1]}: must be 0 < min <= max <= 1")
    if not 0 < aspects[0] <= aspects[1]:
        raise ConfigError(f"{name}: aspect_min={aspects[0]}, aspect_max={aspects[1]}: must be 0 < min <= max")


def check_probability(name: str, p: float) -> None:
    """Raises ConfigError for a number that is no probability."""
    if not 0 <= p <= 1:
        raise ConfigError(f"{name}: p={p}: must be from 0 to 1")


def check_jitter(strength: tuple[float, float, float, float]) -> None:
    """Raises ConfigError for impossible strengths of brightness, contrast, saturation and hue."""
    if not (all(math.isfinite(x) and x >= 0 for x in strength) and strength[3] <= 0.5):
        raise ConfigError(f"jitter{strength}: must be numbers >= 0, the hue <= 0.5")


def check_sigmas(least: float, most: float, target: Target) -> None:
    """Raises ConfigError for impossible standard deviations of a blur, or images too small to reflect."""
    if not 0 < least <= most < math.inf:
        raise ConfigError(f"blur: sigma_min={least}, sigma_max={most}: must be 0 < min <= max")
    if min(target.height, target.width) < 5:
        raise ConfigError(f"blur: images of {target.height} x {target.width} are too small: must be >= 5 px")


def build(
    text: str, table: Mapping[str, Callable[..., Any]], target: Target, *, where: str
) -> list[tuple[str, Any]]:
    """(name, built operation) of each operation in `text`.

    `table` maps a name to a builder, whose first parameter is the Target. Raises ConfigError, which names the
    setting `where`, for text that is no chain of known operations and for arguments that a builder refuses.
    """
    built = []
    for call in parse_calls(text, table, where=where, example=EXAMPLE):
        try:
            built.append((call.name, table[call.name](target, **call.arguments)))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return built
