"""Linear and rank correlation of two values of each image, with intervals. No JAX."""

from typing import NamedTuple

import numpy as np
from scipy import stats

FEWEST_VALUES = 4  # of fewer, Fisher's transformation has no interval
_LEVEL = 0.95


class Correlation(NamedTuple):
    """A coefficient in [-1, 1] with its 95 % interval, and the p value for no correlation."""

    value: float
    low: float
    high: float
    p_value: float


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> Correlation:
    """Pearson's correlation; the interval is Fisher's, which assumes that both are normal.

    Requires FEWEST_VALUES, and neither may be constant.
    """
    found = stats.pearsonr(np.asarray(x_N, np.float64), np.asarray(y_N, np.float64))
    value, p_value = map(float, tuple(found))
    return _with_interval(value, p_value, 1.0, len(x_N))


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> Correlation:
    """Spearman's rank correlation; ties have the mean of their ranks.

    The interval is Fisher's with the variance (1 + r^2 / 2) / (n - 3) (Bonett and Wright, Psychometrika 65,
    2000). With many ties, such as counts that are mostly 0, it is only approximate. Requires FEWEST_VALUES,
    and neither may be constant.
    """
    value, p_value = map(float, tuple(stats.spearmanr(x_N, y_N)))
    return _with_interval(value, p_value, 1.0 + value**2 / 2, len(x_N))


def _with_interval(value: float, p_value: float, scale: float, count: int) -> Correlation:
    assert count >= FEWEST_VALUES, f"{count} values"
    half = float(stats.norm.ppf((1 + _LEVEL) / 2)) * np.sqrt(scale / (count - 3))
    with np.errstate(divide="ignore"):  # a correlation of 1 or -1 is its own interval
        middle = np.arctanh(np.clip(value, -1.0, 1.0))
    return Correlation(value, float(np.tanh(middle - half)), float(np.tanh(middle + half)), p_value)
