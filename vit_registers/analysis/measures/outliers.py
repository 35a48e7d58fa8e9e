"""Which patches are outliers by their norm: four rules. Pure numpy.

The papers cut by hand, per model (150 for DINOv2 g in arXiv:2309.16588), by a quantile (the top 2 % in
"Registers in Small Vision Transformers"), or at mean + 3 standard deviations (arXiv:2506.08010, appendix
A.4). A quantile flags its share whether there are outliers or not. The valley of the histogram is ours.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from vit_registers.config import lookup
from vit_registers.errors import ConfigError

_BINS = 128


class Outliers(NamedTuple):
    """The patches above a threshold; threshold is None where the rule found none."""

    rule: str
    threshold: float | None
    is_outlier_BxP: np.ndarray

    @property
    def share(self) -> float:
        """How many of all patches are flagged, in [0, 1]."""
        return float(self.is_outlier_BxP.mean())


def find(norm_BxP: np.ndarray, rule: str) -> Outliers:
    """The outliers by `rule`: absolute:150, quantile:0.98, std:3 or valley.

    Raises ConfigError for an unknown rule or an invalid number.
    """
    kind, _, text = rule.partition(":")
    threshold_of = lookup(RULES, kind, "--rule")
    try:
        number = float(text) if text else None
    except ValueError:
        raise ConfigError(f"--rule={rule}: '{text}' is no number") from None
    if number is not None and not 0.0 <= number < math.inf:
        raise ConfigError(f"--rule={rule}: the number must be finite and >= 0")
    if (number is None) != (kind == "valley"):
        raise ConfigError(f"--rule={rule}: must be absolute:150, quantile:0.98, std:3 or valley")
    norm_BxP = np.asarray(norm_BxP)
    threshold = threshold_of(norm_BxP, number)
    is_outlier_BxP = np.zeros(norm_BxP.shape, bool) if threshold is None else norm_BxP > threshold
    return Outliers(rule, threshold, is_outlier_BxP)


def _absolute(norm_BxP: np.ndarray, number: float) -> float:
    return number


def _quantile(norm_BxP: np.ndarray, number: float) -> float:
    if not 0 < number < 1:
        raise ConfigError(f"--rule=quantile:{number:g}: the number must be between 0 and 1")
    return float(np.quantile(norm_BxP, number))


def _std(norm_BxP: np.ndarray, number: float) -> float:
    return float(norm_BxP.mean(dtype=np.float64) + number * norm_BxP.std(dtype=np.float64))


def _valley(norm_BxP: np.ndarray, number: None) -> float | None:
    """The emptiest place between the highest mode of the histogram of log norms and the last mode beyond it.

    A mode rises above its surroundings by a factor of 3 (in log(1 + count), smoothed over 2 bins of 128).
    None where there is but one.
    """
    del number
    log_N = np.log(np.maximum(norm_BxP.ravel(), 1e-12))
    if np.ptp(log_N) < 1e-3:
        return None
    counts, edges = np.histogram(log_N, _BINS)
    height = ndimage.gaussian_filter1d(np.log1p(counts), 2.0, mode="constant")
    # padded, so that a mode at an end is one
    peaks, _ = signal.find_peaks(np.pad(height, 1), prominence=np.log(3.0))
    peaks = peaks - 1
    if not len(peaks):
        return None
    main = peaks[np.argmax(height[peaks])]
    if peaks[-1] == main:
        return None
    lowest = main + int(np.argmin(height[main : peaks[-1] + 1]))
    return float(np.exp((edges[lowest] + edges[lowest + 1]) / 2))


RULES = {"absolute": _absolute, "quantile": _quantile, "std": _std, "valley": _valley}
