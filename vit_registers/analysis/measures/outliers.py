"""Outliers among patches by their norm: five rules.

The papers set a threshold per model (150 for DINOv2 g in arXiv:2309.16588), a quantile of all patches or of
each batch (the top 2 % in "Registers in Small Vision Transformers": of all in sections 4.2, of each batch in
section 4.3.2), or mean + 3 standard deviations (arXiv:2506.08010, appendix A.4). A quantile always flags its
share. The valley of the histogram is an addition of this project.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from vit_registers.config import lookup
from vit_registers.errors import ConfigError

_BINS = 128
_FORMS = "must be absolute:150, quantile:0.98, batch:0.98/64, std:3 or valley"


class Outliers(NamedTuple):
    """The patches above a threshold; threshold is None if the rule found none.

    The rule `batch` has a threshold for each batch. `threshold` is then their mean, which serves where one
    number is needed: in pictures, and for edited models.
    """

    rule: str
    threshold: float | None
    is_outlier_BxP: np.ndarray

    @property
    def is_by_batch(self) -> bool:
        """Whether each batch has a threshold of its own."""
        return self.rule.startswith("batch:")

    @property
    def share(self) -> float:
        """The share of flagged patches, in [0, 1]."""
        return float(self.is_outlier_BxP.mean())


def find(norm_BxP: np.ndarray, rule: str) -> Outliers:
    """The outliers by `rule`: absolute:150, quantile:0.98, batch:0.98/64, std:3 or valley.

    batch:0.98/64 takes the quantile of each 64 images in their order, and of the rest in the last batch.
    Raises ConfigError for an unknown rule or an invalid number.
    """
    kind, _, text = rule.partition(":")
    lookup(dict.fromkeys(("absolute", "quantile", "batch", "std", "valley")), kind, "--rule")
    text, slash, size = text.partition("/")
    if bool(slash) != (kind == "batch") or (slash and not (size.isdecimal() and int(size) > 0)):
        raise ConfigError(f"--rule={rule}: {_FORMS}, where 64 is the number of images in a batch")
    try:
        number = float(text) if text else None
    except ValueError:
        raise ConfigError(f"--rule={rule}: '{text}' is no number") from None
    if number is not None and not 0.0 <= number < math.inf:
        raise ConfigError(f"--rule={rule}: the number must be finite and >= 0")
    if (number is None) != (kind == "valley"):
        raise ConfigError(f"--rule={rule}: {_FORMS}")
    norm_BxP = np.asarray(norm_BxP)
    if slash and number is not None:
        return _by_batch(norm_BxP, rule, _share(kind, number), min(int(size), len(norm_BxP)))
    threshold = _threshold(norm_BxP, kind, number)
    is_outlier_BxP = np.zeros(norm_BxP.shape, bool) if threshold is None else norm_BxP > threshold
    return Outliers(rule, threshold, is_outlier_BxP)


def _by_batch(norm_BxP: np.ndarray, rule: str, share: float, size: int) -> Outliers:
    starts = range(0, len(norm_BxP), size)
    thresholds = [float(np.quantile(norm_BxP[start : start + size], share)) for start in starts]
    threshold_B = np.repeat(thresholds, size)[: len(norm_BxP)]
    return Outliers(rule, float(np.mean(thresholds)), norm_BxP > threshold_B[:, None])


def _share(kind: str, number: float) -> float:
    """The number as the share of a quantile. Raises ConfigError unless it is between 0 and 1."""
    if not 0 < number < 1:
        raise ConfigError(f"--rule={kind}:{number:g}: the number must be between 0 and 1")
    return number


def _threshold(norm_BxP: np.ndarray, kind: str, number: float | None) -> float | None:
    if number is None:
        return _valley(norm_BxP)
    if kind == "absolute":
        return number
    if kind == "std":
        return float(norm_BxP.mean(dtype=np.float64) + number * norm_BxP.std(dtype=np.float64))
    return float(np.quantile(norm_BxP, _share(kind, number)))


def _valley(norm_BxP: np.ndarray) -> float | None:
    """The minimum between the highest mode of the histogram of log norms and the last mode above it.

    A mode exceeds its surroundings by a factor of 3 (in log(1 + count), smoothed over 2 bins of 128). None
    for a single mode.
    """
    log_N = np.log(np.maximum(norm_BxP.ravel(), 1e-12))
    if np.ptp(log_N) < 1e-3:
        return None
    counts, edges = np.histogram(log_N, _BINS)
    height = ndimage.gaussian_filter1d(np.log1p(counts), 2.0, mode="constant")
    # Padded, so that a mode at an end is found.
    peaks = signal.find_peaks(np.pad(height, 1), prominence=np.log(3.0))[0] - 1
    if not len(peaks):
        return None
    main = peaks[np.argmax(height[peaks])]
    if peaks[-1] == main:
        return None
    lowest = main + int(np.argmin(height[main : peaks[-1] + 1]))
    return float(np.exp((edges[lowest] + edges[lowest + 1]) / 2))
