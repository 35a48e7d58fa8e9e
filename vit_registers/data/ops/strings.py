"""From operation strings such as "inception_crop(area_min=0.2) | flip" to functions; for both loaders."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_registers.config.strings import parse_calls
from vit_registers.errors import ConfigError

EXAMPLE = "random_crop(4) | flip"  # of an operation string, for errors


class Target(NamedTuple):
    """The images that a chain of operations has to deliver."""

    height: int
    width: int
    channels: int


def check_padding(padding: int) -> None:
    """Raises ConfigError for a negative padding of random_crop."""
    if padding < 0:
        raise ConfigError(f"random_crop: padding={padding}: must be >= 0")


def check_color(name: str, target: Target) -> None:
    """Raises ConfigError if the operation `name`, which requires 3 channels, gets images with others."""
    if target.channels != 3:
        raise ConfigError(f"{name}: the images have {target.channels} channels: must be 3")


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
