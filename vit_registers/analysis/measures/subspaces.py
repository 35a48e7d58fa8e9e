"""How two parts of a vector depend on each other: angles of their subspaces, ranks of their norms."""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.stats


class Angles(NamedTuple):
    """Canonical (principal) angles between two subspaces, in degrees, smallest first."""

    degrees_K: np.ndarray
    overlap: float  # mean squared cosine, 0 (orthogonal) to 1 (one holds the other)
    by_chance: float  # the mean overlap of random subspaces of these dimensions


def canonical_angles(first_DxK: np.ndarray, second_DxK: np.ndarray) -> Angles:
    """The angles between the spans of two orthonormal bases, as many as the smaller one has directions.

    A random subspace of m of D dimensions has the overlap m / D, in the mean, with any smaller one.
    """
    degrees_K = np.rad2deg(scipy.linalg.subspace_angles(first_DxK, second_DxK))[::-1]
    larger = max(first_DxK.shape[1], second_DxK.shape[1])
    overlap = float(np.square(np.cos(np.deg2rad(degrees_K))).mean())
    return Angles(degrees_K, overlap, larger / len(first_DxK))


def rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Spearman's rank correlation; None for fewer than three values, or if one side does not vary."""
    if len(x_N) < 3 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    correlation, _ = map(float, tuple(scipy.stats.spearmanr(x_N, y_N)))
    return correlation
