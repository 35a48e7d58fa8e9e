"""The settings of the command line that experiments read. Imports nothing slow: --help shows the defaults."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_registers.data.sources.boxes import BoxImage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of the command line that experiments read."""

    rule: str = "std:3"  # outliers.py
    num_examples: int = 6  # images that pictures show
    boxes: "Sequence[BoxImage]" = ()  # the images of lost
    num_blocks: int = 1  # the last blocks whose features LOST uses
    num_edited: int = 128  # images that edited models are shown, at most
    energy: tuple[float, float, float, float] | None = None  # hours, watts, PUE, kg of CO2 for each kWh
