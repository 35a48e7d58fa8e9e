"""The position of a token in the image, predicted by one linear classifier.

Tokens may be memory-mapped: they are read a few images at a time. The axis letter N counts tokens of several
images.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.optimize
from scipy.linalg import solve_triangular

from vit_registers.analysis.measures.probes import HELD_OUT
from vit_registers.errors import DataError
from vit_registers.evaluation.threads import threads_for
from vit_registers.models.tokens import Grid

CHUNK_IMAGES = 16  # read at once


def _chunks(token_BxPxD: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(token_BxPxD), CHUNK_IMAGES):
        yield token_BxPxD[start : start + CHUNK_IMAGES]


def feature_moments(token_BxPxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean_D, scale_D) of the tokens, float64, over images and patches; scale is the standard deviation.

    Computed in two passes, for precision beside large means. Constant features have scale 1. Raises DataError
    for no images, and for tokens that are not finite, with the image.
    """
    num_images, num_patches, width = token_BxPxD.shape
    if num_images == 0:
        raise DataError("no images to fit a probe on: take more training images")
    total_D = np.zeros(width)
    for index, token in enumerate(_chunks(token_BxPxD)):
        with np.errstate(invalid="ignore"):  # inf - inf, which the next lines find
            sum_BxD = token.sum(axis=1, dtype=np.float64)
        broken = np.flatnonzero(~np.isfinite(sum_BxD).all(axis=1))
        if len(broken):
            image = index * CHUNK_IMAGES + broken[0]
            raise DataError(f"tokens of image {image} are not finite: extract them in float32")
        total_D += sum_BxD.sum(axis=0)
    mean_D = total_D / (num_images * num_patches)
    square_D = sum(((token - mean_D) ** 2).sum(axis=(0, 1)) for token in _chunks(token_BxPxD))
    std_D = np.sqrt(square_D / (num_images * num_patches))
    is_constant_D = std_D <= 1e-7 * np.abs(mean_D)  # a constant, after rounding
    return mean_D, np.where(is_constant_D, 1.0, std_D)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionProbe:
    """One linear softmax classifier over the P positions; arrays are float32."""

    mean_D: np.ndarray
    weight_DxP: np.ndarray
    bias_P: np.ndarray
    strength: float  # the chosen C
    is_converged: bool  # of the final fit; False: stopped at the iteration limit, or by the line search

    def predict(self, token_NxD: np.ndarray) -> np.ndarray:
        """The most likely position of each token, flat and row-major; the first one among equals."""
        centred_NxD = token_NxD.astype(np.float32) - self.mean_D
        return (centred_NxD @ self.weight_DxP + self.bias_P).argmax(axis=1)


def fit_position_probe(
    token_BxPxD: np.ndarray,
    *,
    seed: int,
    strengths: Sequence[float] = (1e-3, 1e-1, 10.0),
    max_iterations: int = 300,
) -> PositionProbe:
    """The linear classifier of arXiv:2309.16588, Figure 5b: which of the P positions does a token have?

    One classifier for all kinds of token, trained on the patches of training images; the class is the flat
    index on the patch grid. The paper specifies neither solver nor data. Here: softmax with an L2 penalty and
    L-BFGS as in scikit-learn's LogisticRegression. The gradient is summed over a few images at a time, in
    memory of these images and about twenty times the D x P weights.

    The penalty applies to the weights for whitened tokens, whose covariance within positions is the identity.
    On standardised tokens with most of the variance in a few directions, the accuracy depends mainly on the
    penalty and on the progress of the solver: on such synthetic tokens (150 images, P = 196) ten epochs of
    Adam gave a top-1 of 0.13 to 0.52 over learning rates, and L-BFGS 0.09 to 0.84 over penalties. C, as in
    `logistic_probe`, is chosen from `strengths` by top-1 on a fifth of the images, drawn by `seed`; then all
    images are fitted. With one strength none is held out.

    A fit reads all tokens about a hundred times, with 4 N D P operations each time. Raises DataError as
    `feature_moments` does, and for several strengths with one image.
    """
    mean_D, whiten_DxD = _whitening(token_BxPxD)
    everything = _Objective(token_BxPxD, np.arange(len(token_BxPxD)), mean_D, whiten_DxD)
    strengths = sorted(strengths)
    weight, strength = everything.zeros(), strengths[0]
    with threads_for(token_BxPxD.size * token_BxPxD.shape[1]):
        if len(strengths) > 1:
            weight, strength = _choose_strength(everything, strengths, seed, max_iterations)
        weight, is_converged = everything.minimize(weight, strength, max_iterations)
    return PositionProbe(
        mean_D=everything.mean_D,
        weight_DxP=everything.plain(weight)[:-1],
        bias_P=everything.plain(weight)[-1],
        strength=strength,
        is_converged=is_converged,
    )


def _whitening(token_BxPxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean_D, whiten_DxD): (token - mean) @ whiten has the identity for covariance within positions.

    A millionth of each feature's variance is added to the covariance, which may be singular.
    """
    mean_D, scale_D = feature_moments(token_BxPxD)
    num_images, num_patches, width = token_BxPxD.shape
    mean_PxD = sum(token.sum(axis=0, dtype=np.float64) for token in _chunks(token_BxPxD)) / num_images
    within_DxD = 1e-6 * np.eye(width)
    for token in _chunks(token_BxPxD):
        centred_NxD = ((token - mean_PxD) / scale_D).reshape(-1, width)
        within_DxD += centred_NxD.T @ centred_NxD / (num_images * num_patches)
    lower_DxD = np.linalg.cholesky(within_DxD)
    return mean_D, solve_triangular(lower_DxD, np.eye(width), lower=True).T / scale_D[:, None]


class _Objective:
    """Cross-entropy and penalty over some of the images; weights are for whitened tokens, the bias last."""

    def __init__(
        self, token_BxPxD: np.ndarray, images: np.ndarray, mean_D: np.ndarray, whiten_DxD: np.ndarray
    ) -> None:
        self.token_BxPxD, self.images = token_BxPxD, images
        self.mean_D, self.whiten_DxD = mean_D.astype(np.float32), whiten_DxD
        self.num_patches, self.width = token_BxPxD.shape[1:]

    def over(self, images: np.ndarray) -> "_Objective":
        """The same over other images."""
        return _Objective(self.token_BxPxD, images, self.mean_D, self.whiten_DxD)

    def zeros(self) -> np.ndarray:
        return np.zeros((self.width + 1, self.num_patches))

    def plain(self, weight: np.ndarray) -> np.ndarray:
        """The weights for tokens that are centred only, float32."""
        return np.concatenate([self.whiten_DxD @ weight[:-1], weight[-1:]]).astype(np.float32)

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.images), CHUNK_IMAGES):
            token = self.token_BxPxD[self.images[start : start + CHUNK_IMAGES]]
            yield token.reshape(-1, self.width).astype(np.float32) - self.mean_D

    def value(self, weight: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        """The mean cross-entropy plus |weight|^2 / (2 C N), without the bias, and the gradient."""
        plain = self.plain(weight)
        loss, gradient = 0.0, self.zeros()
        for token_NxD in self._chunks():
            chunk_gradient, chunk_loss = _cross_entropy(plain, token_NxD)
            loss += chunk_loss
            gradient += chunk_gradient
        gradient[:-1] = self.whiten_DxD.T @ gradient[:-1] + weight[:-1] / strength
        count = len(self.images) * self.num_patches
        return (loss + 0.5 / strength * (weight[:-1] ** 2).sum()) / count, gradient / count

    def minimize(self, weight: np.ndarray, strength: float, max_iterations: int) -> tuple[np.ndarray, bool]:
        """The best weight, starting from `weight`, and whether L-BFGS met its tolerance."""

        def flat(flat_weight: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.value(flat_weight.reshape(weight.shape), strength)
            return value, gradient.ravel()

        # Gradients are about 1 / P at the start; the sums in float32 have a precision of about 1e-7.
        options = {"maxiter": max_iterations, "maxfun": 10 * max_iterations}
        options |= {"gtol": 1e-3 / self.num_patches, "ftol": 1e-7}
        found = scipy.optimize.minimize(flat, weight.ravel(), jac=True, method="L-BFGS-B", options=options)
        return found.x.reshape(weight.shape), bool(found.success)

    def top1(self, weight: np.ndarray) -> float:
        """The fraction of tokens whose position has the largest logit."""
        plain, hits = self.plain(weight), 0
        for token_NxD in self._chunks():
            predicted_N = (token_NxD @ plain[:-1] + plain[-1]).argmax(axis=1)
            hits += (predicted_N == np.arange(len(predicted_N)) % self.num_patches).sum()
        return float(hits / (len(self.images) * self.num_patches))


def _cross_entropy(weight: np.ndarray, token_NxD: np.ndarray) -> tuple[np.ndarray, float]:
    """Gradient and value of the summed cross-entropy for tokens of whole images; the last row is the bias."""
    logit_NxP = token_NxD @ weight[:-1] + weight[-1]
    logit_NxP -= logit_NxP.max(axis=1, keepdims=True)
    rows_N = np.arange(len(token_NxD))
    position_N = rows_N % weight.shape[1]
    own_N = logit_NxP[rows_N, position_N]
    np.exp(logit_NxP, out=logit_NxP)
    sum_N = logit_NxP.sum(axis=1)
    loss = float((np.log(sum_N) - own_N).sum(dtype=np.float64))
    error_NxP = logit_NxP / sum_N[:, None]
    error_NxP[rows_N, position_N] -= 1
    return np.concatenate([token_NxD.T @ error_NxP, error_NxP.sum(axis=0, keepdims=True)]), loss


def _choose_strength(
    everything: _Objective, strengths: Sequence[float], seed: int, max_iterations: int
) -> tuple[np.ndarray, float]:
    """The weights and the C with the best top-1 on held-out images; the smallest C among equals."""
    order_B = np.random.default_rng(seed).permutation(len(everything.images))
    num_held_out = max(1, round(HELD_OUT * len(order_B)))
    if num_held_out == len(order_B):
        raise DataError(
            "one image is too few to choose a C for the position probe: take more, or give a single strength"
        )
    held_out = everything.over(np.sort(order_B[:num_held_out]))
    rest = everything.over(np.sort(order_B[num_held_out:]))
    weight, best = everything.zeros(), (-1.0, everything.zeros(), strengths[0])
    for strength in strengths:  # starting from the last solution, which is near
        weight, _ = rest.minimize(weight, strength, max_iterations)
        if (top1 := held_out.top1(weight)) > best[0]:
            best = (top1, weight, strength)
    return best[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionScore:
    """How well the position of one kind of token is predicted; None without such tokens."""

    kind: str
    num_tokens: int
    top1: float | None  # fraction of tokens whose position is predicted
    distance_patches: float | None  # mean Euclidean distance from the predicted cell to the true one


def score_positions(
    probe: PositionProbe, token_BxPxD: np.ndarray, is_outlier_BxP: np.ndarray, *, grid: Grid
) -> tuple[PositionScore, PositionScore]:
    """The scores of normal and of outlier tokens, in this order, for images the probe was not trained on.

    Figure 5b of arXiv:2309.16588: top-1 and "average distance", which is taken to be the Euclidean distance,
    in patches, between the cell of the largest logit and the true one. Chance is a top-1 of 1 / P.
    """
    num_patches = grid[0] * grid[1]
    assert token_BxPxD.shape[:2] == is_outlier_BxP.shape and is_outlier_BxP.dtype == bool
    assert is_outlier_BxP.shape[1] == num_patches == len(probe.bias_P)
    true_P = np.arange(num_patches)
    predicted = [probe.predict(token.reshape(-1, token.shape[2])) for token in _chunks(token_BxPxD)]
    predicted_BxP = np.concatenate([np.zeros(0, np.int64), *predicted]).reshape(-1, num_patches)
    rows_BxP = predicted_BxP // grid[1] - true_P // grid[1]
    columns_BxP = predicted_BxP % grid[1] - true_P % grid[1]
    distance_BxP = np.hypot(rows_BxP, columns_BxP)

    def score(kind: str, is_kind_BxP: np.ndarray) -> PositionScore:
        count = int(is_kind_BxP.sum())
        return PositionScore(
            kind=kind,
            num_tokens=count,
            top1=float((distance_BxP[is_kind_BxP] == 0).mean()) if count else None,
            distance_patches=float(distance_BxP[is_kind_BxP].mean()) if count else None,
        )

    return score("normal", ~is_outlier_BxP), score("outlier", is_outlier_BxP)
