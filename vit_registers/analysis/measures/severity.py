"""The severity of outliers: entropy of attention, similarity of neighbours, variance of flagged tokens.

Undefined values, such as the cosine with a zero vector, are NaN; `summarize_values` excludes and counts them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from vit_registers.errors import DataError
from vit_registers.models.tokens import Grid

DIRECTIONS = ("up", "down", "left", "right")  # the axis of 4 in `cosine_Bx4xP`
DENSITY_POINTS = np.linspace(-1, 1, 201)

# Squared, relative to the squared size of the values: between the rounding of float64 (1e-32) and the
# smallest step of float32 (4e-15). A variance below this is rounding, not data.
ROUNDING = 1e-24


class Summary(NamedTuple):
    """Mean, median and sample standard deviation of `num_values` values. None: too few values."""

    num_values: int
    num_undefined: int  # NaN, excluded
    mean: float | None
    median: float | None
    std: float | None


class NeighbourCosine(NamedTuple):
    """Cosine of each patch with its neighbours in the order of DIRECTIONS; 0 where `is_valid` is False."""

    cosine_Bx4xP: np.ndarray
    is_valid_Bx4xP: np.ndarray


class CosineGroup(NamedTuple):
    """Cosines of the pairs whose centre is of one kind; `density` is at DENSITY_POINTS."""

    num_tokens: int
    num_pairs: int
    mean: float | None
    median: float | None
    density: np.ndarray | None  # None: fewer than two different values


class NeighbourSplit(NamedTuple):
    """Cosines around outliers and around all other patches, and how far apart the two distributions are."""

    outliers: CosineGroup
    background: CosineGroup
    ks_distance: float | None  # largest gap of the two distribution functions, 0 to 1; None: a group is empty


class FeatureVariance(NamedTuple):
    """Variance of both kinds of patches; the shares sum to 1. None: no such token, or no variance."""

    num_outliers: int
    num_background: int
    variance_outliers: float | None  # trace of the covariance, divided by the number of tokens
    variance_background: float | None
    share_outliers: float | None
    share_background: float | None
    share_between: float | None


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """The values in float64. Raises DataError with `what` and the first bad row unless all are finite."""
    values = np.asarray(values, np.float64)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        bad = np.flatnonzero(~is_finite.reshape(len(values), -1).all(axis=1))
        raise DataError(
            f"{len(bad)} of {len(values)} rows of {what} are not finite, the first is row {bad[0]}: check "
            "the checkpoint's parameters and the images, or run the model in float32"
        )
    return values


def cosine_similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosines along the last axis, float64, -1 to 1; NaN where a vector is zero. Other axes broadcast."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    product = (x * y).sum(axis=-1)
    return np.clip(np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0), -1, 1)


def mean_pairwise_cosine(x_NxD: np.ndarray) -> float | None:
    """Mean cosine over all pairs of rows, in O(N D). Rows of zeros are excluded; None for fewer than two."""
    x_NxD = finite(x_NxD, "x")
    norm_N = np.linalg.norm(x_NxD, axis=1)
    unit_NxD = x_NxD[norm_N > 0] / norm_N[norm_N > 0][:, None]
    count = len(unit_NxD)
    if count < 2:
        return None
    # The squared sum contains every ordered pair once, and each row with itself.
    return float((np.square(unit_NxD.sum(axis=0)).sum() - count) / (count * (count - 1)))


def summarize_values(value_B: np.ndarray | Sequence[float]) -> Summary:
    """Mean, median and sample standard deviation; NaN is excluded and counted."""
    value_B = np.asarray(value_B, np.float64)
    kept = value_B[~np.isnan(value_B)]
    return Summary(
        num_values=kept.size,
        num_undefined=value_B.size - kept.size,
        mean=float(kept.mean()) if kept.size else None,
        median=float(np.median(kept)) if kept.size else None,
        std=float(kept.std(ddof=1)) if kept.size > 1 else None,
    )


def attention_entropy(weight_T: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(nats, share): entropy of attention over the last axis, and its share of the maximum, log T.

    Other axes are kept, as in weight_BxNxTxT -> nats_BxNxT. Each row is divided by its sum first, so a row
    that was cut to the patches is a distribution over patches. Rows of zeros give NaN. The share is None for
    T = 1.
    """
    weight = finite(weight_T, "the attention weights")
    assert weight.min(initial=0) >= 0, "attention weights are not negative"
    total = weight.sum(axis=-1, keepdims=True)
    part = np.divide(weight, total, out=np.full_like(weight, np.nan), where=total > 0)
    nats = scipy.special.entr(part).sum(axis=-1)
    num_tokens = weight.shape[-1]
    return nats, nats / np.log(num_tokens) if num_tokens > 1 else None


def neighbour_cosine(feature_BxPxD: np.ndarray, grid: Grid) -> NeighbourCosine:
    """Cosine of each patch with the patches above, below, to the left and to the right.

    arXiv:2309.16588 (figure 5a) and "Registers in Small Vision Transformers" (OpenReview 5JflRlCt3Q,
    figure 6) measure it on the output of the patch embedding, before positions are added. Pairs over the
    border and pairs with a zero vector are not valid.
    """
    rows, columns = grid
    feature = finite(feature_BxPxD, "the patch features")
    batch, num_patches, width = feature.shape
    assert num_patches == rows * columns, f"{num_patches} patches on a grid of {rows} x {columns}"
    norm = np.linalg.norm(feature, axis=-1, keepdims=True)
    unit = (feature / np.where(norm > 0, norm, 1)).reshape(batch, rows, columns, width)
    is_real = (norm > 0).reshape(batch, rows, columns)

    cosines, is_valid = np.zeros((batch, 4, rows, columns)), np.zeros((batch, 4, rows, columns), bool)
    up, down, left, right = range(4)
    cosines[:, down, :-1] = cosines[:, up, 1:] = np.clip((unit[:, :-1] * unit[:, 1:]).sum(-1), -1, 1)
    is_valid[:, down, :-1] = is_valid[:, up, 1:] = is_real[:, :-1] & is_real[:, 1:]
    cosines[:, right, :, :-1] = cosines[:, left, :, 1:] = np.clip(
        (unit[:, :, :-1] * unit[:, :, 1:]).sum(-1), -1, 1
    )
    is_valid[:, right, :, :-1] = is_valid[:, left, :, 1:] = is_real[:, :, :-1] & is_real[:, :, 1:]
    return NeighbourCosine(cosines.reshape(batch, 4, num_patches), is_valid.reshape(batch, 4, num_patches))


def split_by_outlier(
    neighbours: NeighbourCosine, is_outlier_BxP: np.ndarray, *, seed: int, max_points: int = 20_000
) -> NeighbourSplit:
    """The cosines around outliers and those around all other patches.

    A valid pair belongs to the kind of its centre, so a pair of two kinds is in both groups, as in the code
    of "Registers in Small Vision Transformers". That code plots the densities on [0, 1], which hides negative
    cosines; here they are on [-1, 1]. The kernel is Gaussian with Scott's width, fitted to at most
    `max_points` pairs drawn with `seed`; a part of its mass lies outside [-1, 1]. All other values are of all
    pairs.
    """
    outliers, background = (
        neighbours.cosine_Bx4xP[neighbours.is_valid_Bx4xP & is_kind_BxP[:, None]]
        for is_kind_BxP in (is_outlier_BxP, ~is_outlier_BxP)
    )
    distance = None
    if outliers.size and background.size:
        # The exact method would only change the p-value, which is not used.
        distance, _ = map(float, scipy.stats.ks_2samp(outliers, background, method="asymp"))
    num_outliers = int(is_outlier_BxP.sum())
    return NeighbourSplit(
        outliers=_cosine_group(outliers, num_outliers, seed=seed, max_points=max_points),
        background=_cosine_group(
            background, is_outlier_BxP.size - num_outliers, seed=seed, max_points=max_points
        ),
        ks_distance=distance,
    )


def _cosine_group(values: np.ndarray, num_tokens: int, *, seed: int, max_points: int) -> CosineGroup:
    drawn = values
    if values.size > max_points:
        drawn = np.random.default_rng(seed).choice(values, max_points, replace=False)
    has_density = drawn.size > 1 and np.ptp(drawn) > 1e-9
    return CosineGroup(
        num_tokens=num_tokens,
        num_pairs=values.size,
        mean=float(values.mean()) if values.size else None,
        median=float(np.median(values)) if values.size else None,
        density=scipy.stats.gaussian_kde(drawn)(DENSITY_POINTS) if has_density else None,
    )


class Moments:
    """Count, mean and sum of squared distances from the mean of vectors that come in batches."""

    def __init__(self) -> None:
        self.count, self.mean_D, self.scatter = 0, np.zeros(()), 0.0

    def add(self, value_NxD: np.ndarray) -> None:
        """Adds a batch of vectors, which may be empty."""
        added = len(value_NxD)
        if not added:
            return
        mean_D = value_NxD.mean(axis=0)
        step_D, total = mean_D - self.mean_D, self.count + added
        # Merging centred sums: a plain sum of squares would lose the variance beside a large mean.
        self.scatter += float(np.square(value_NxD - mean_D).sum())
        self.scatter += float(np.square(step_D).sum()) * self.count * added / total
        self.mean_D = self.mean_D + step_D * (added / total)
        self.count = total


class VarianceSums:
    """Sums for `FeatureVariance` over batches, in memory of two vectors."""

    def __init__(self) -> None:
        self._outliers, self._background = Moments(), Moments()

    def add(self, feature_BxPxD: np.ndarray, is_outlier_BxP: np.ndarray) -> None:
        """Adds a batch. Raises DataError for features that are not finite."""
        feature = finite(feature_BxPxD, "the patch features")
        self._outliers.add(feature[is_outlier_BxP])
        self._background.add(feature[~is_outlier_BxP])

    def result(self) -> FeatureVariance:
        """The variances of all batches so far.

        Variance is the trace of the covariance over D. The shares are the three parts of the sum of squared
        distances from the mean of all tokens: around the outliers' mean, around the others' mean, and between
        these means.
        """
        first, second = self._outliers, self._background
        count, between = first.count + second.count, 0.0
        if first.count and second.count:
            gap_D = first.mean_D - second.mean_D
            between = float(np.square(gap_D).sum()) * first.count * second.count / count
        total = first.scatter + second.scatter + between
        size = total + sum(m.count * float(np.square(m.mean_D).sum()) for m in (first, second))
        has_variance = total > ROUNDING * size
        shares = [x / total if has_variance else None for x in (first.scatter, second.scatter, between)]
        variances = [m.scatter / m.count if m.count else None for m in (first, second)]
        return FeatureVariance(first.count, second.count, *variances, *shares)
