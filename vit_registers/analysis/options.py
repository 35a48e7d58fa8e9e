"""The settings of the command line that experiments read. Imports nothing slow: --help shows the defaults."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_registers.errors import ConfigError

if TYPE_CHECKING:
    from vit_registers.config import Tasks
    from vit_registers.data.sources.boxes import BoxImage
    from vit_registers.evaluation.task import Splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of the command line that experiments read."""

    rule: str = "std:3"  # outliers.py
    num_examples: int = 6  # images that pictures show
    boxes: "Sequence[BoxImage]" = ()  # the images of lost and of background-variance
    num_blocks: int = 1  # the last blocks whose features LOST uses
    lost_biases: tuple[float, ...] = (0.0, 0.05, -0.05, -0.1, -0.2, -0.4)  # on all similarities
    lost_size_px: int | None = None  # side of the centre crop that LOST sees; None: images of their own size
    # cls-terms: terms are those before the output projection, with the heads joined
    is_before_projection: bool = False
    num_edited: int = 128  # images that edited models are shown, at most
    # frozen-heads: the tasks, their settings, the images of the classifiers, and those of dense tasks
    tasks: tuple[str, ...] = ()
    task_settings: "Tasks | None" = None
    task_images: "Splits | None" = None
    dense_images: "Splits | None" = None
    energy: tuple[float, float, float, float] | None = None  # hours, watts, PUE, kg of CO2 for each kWh


def parse_biases(given: Sequence[str]) -> tuple[float, ...]:
    """The numbers of --lost_biases after 0, which is LOST as published; each once. ConfigError for others."""
    try:
        biases = [float(text) for text in given]
    except ValueError:
        biases = [math.nan]
    if not all(map(math.isfinite, biases)):
        raise ConfigError(f"--lost_biases={','.join(given)}: must be numbers, such as 0.05,-0.1")
    return tuple(dict.fromkeys((0.0, *biases)))


def parse_energy(given: Sequence[str] | None) -> tuple[float, float, float, float] | None:
    """The four numbers of --energy; None without it. Raises ConfigError for others."""
    if not given:
        return None
    try:
        hours, watts, pue, intensity = map(float, given)
        is_valid = all(0 <= number < math.inf for number in (hours, watts, pue, intensity))
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(
            f"--energy={','.join(given)}: must be HOURS,WATTS,PUE,INTENSITY, four numbers: hours of all "
            "devices, watts of one, power usage effectiveness, kg of CO2 for each kWh, as in "
            "--energy=66,400,1.2,0.4"
        )
    return hours, watts, pue, intensity
