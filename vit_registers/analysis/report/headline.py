"""Numbers for the head of a report: means over images with their uncertainty, and differences of models.

The +- of a mean over images is 1.96 of its standard errors, a 95 % interval for other images of the same
kind. It says nothing about a model that is trained again. No JAX.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from vit_registers.analysis.report.result import counted, number

FEWEST = 30  # images or patches; of fewer nothing is claimed
_ERRORS = 1.96  # standard errors in a 95 % interval
UNCERTAINTY = (
    "\u00b1 is 1.96 standard errors of the mean over images: a 95 % interval for other images of the same "
    "kind. Models are compared image by image. It does not cover training again with another seed. "
    f"Nothing is claimed from fewer than {FEWEST} images or patches."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Headline:
    """A number of one model. `what` says what it is, and after a comma its unit.

    `error` is its standard error; None: it has none, such as a count of parameters. `value_B` has one value
    for each image where `value` is their mean, so that models can be compared image by image.
    """

    what: str
    value: float | None
    error: float | None = None
    count: int = 0  # of images
    value_B: np.ndarray | None = None

    @property
    def unit(self) -> str:
        """The unit; empty if it has none."""
        return self.what.partition(", ")[2]

    @property
    def is_small(self) -> bool:
        """Whether there are too few images to claim anything."""
        return self.error is not None and self.count < FEWEST

    def text(self) -> str:
        """The number with its uncertainty, without the unit."""
        return _with_error(self.value, self.error)


def over_images(what: str, value_B: np.ndarray) -> Headline:
    """The mean of one value for each image. NaN marks images without a value; they are left out."""
    value_B = np.asarray(value_B, np.float64)
    kept = value_B[~np.isnan(value_B)]
    if not len(kept):
        return Headline(what=what, value=None, error=0.0)
    error = float(kept.std(ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else math.nan
    return Headline(what=what, value=float(kept.mean()), error=error, count=len(kept), value_B=value_B)


def share_of_images(what: str, percent: float | None, count: int) -> Headline:
    """A percentage of `count` images, with the standard error of a proportion."""
    share = math.nan if percent is None else percent / 100
    error = 100 * math.sqrt(share * (1 - share) / count) if count and 0 <= share <= 1 else None
    return Headline(what=what, value=percent, error=error, count=count)


def difference(first: Headline, second: Headline) -> tuple[float, float]:
    """(first - second, its standard error): image by image where both saw the same images."""
    assert first.value is not None and second.value is not None
    value = first.value - second.value
    a, b = first.value_B, second.value_B
    if a is not None and b is not None and len(a) == len(b):
        kept = (a - b)[~np.isnan(a - b)]
        if len(kept) > 1 and len(kept) == first.count == second.count:
            return value, float(kept.std(ddof=1) / math.sqrt(len(kept)))
    return value, math.hypot(first.error or 0.0, second.error or 0.0)


def statement(what: str, by_model: Mapping[str, Headline]) -> str:
    """One sentence: the number of each model, or of the lowest and the highest of more than two.

    Of two or more it says whether lowest and highest differ by more than the uncertainty. Empty without any
    value.
    """
    given = {name: one for name, one in by_model.items() if one.value is not None}
    if not given:
        return ""
    name_of, _, unit = what.partition(", ")
    ranked = sorted(given, key=lambda name: given[name].value or 0.0)
    shown = list(given) if len(given) <= 2 else [ranked[0], ranked[-1]]
    unit = f" {unit}" if unit else ""
    parts = [f"{name} {given[name].text()}{unit}" for name in shown]
    few = [name for name, one in given.items() if one.is_small]
    more = f" (lowest and highest of {len(given)} models)" if len(given) > 2 else ""
    text = f"{name_of[0].upper()}{name_of[1:]}: {', '.join(parts)}{more}"
    text += f" (n = {_counts([given[name] for name in shown])})"
    if few:
        return f"{text}: too few images for a claim (fewer than {FEWEST})."
    if len(given) < 2:
        return f"{text}."
    high, low = ranked[-1], ranked[0]
    value, error = difference(given[high], given[low])
    apart = _with_error(value, error)
    if value > _ERRORS * error:
        return f"{text}; {high} is higher by {apart}{unit}."
    return f"{text}; no difference beyond the uncertainty ({apart}{unit})."


def _counts(shown: Sequence[Headline]) -> str:
    counts = list(dict.fromkeys(one.count for one in shown))
    return counted(counts[0], "image") if len(counts) == 1 else " and ".join(f"{count:,}" for count in counts)


def _with_error(value: float | None, error: float | None) -> str:
    """The number, and behind +- its 95 % interval with two digits; the number has as many decimals."""
    if value is None or error is None or not math.isfinite(error) or not math.isfinite(value) or error == 0:
        return number(value)
    half = _ERRORS * error
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:,.{decimals}f} \u00b1 {half:,.{decimals}f}"
