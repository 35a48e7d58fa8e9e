"""Logistic regression on one token per image: how much a token knows of the whole image. numpy only.

Here the letter N counts examples, one token each.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from vit_registers.config import lookup
from vit_registers.errors import DataError
from vit_registers.models.tokens import Grid

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
HELD_OUT = 0.2  # of each class


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """One logistic regression: its accuracy on the test part, and what it was fitted with."""

    accuracy: float  # fraction of the test examples
    strength: float  # the chosen C
    num_train: int
    num_test: int
    num_unseen: int  # test examples of a class without training examples; they count as wrong
    is_converged: bool  # of the final fit; False: stopped at the limit of iterations, or by the line search


def logistic_probe(
    train_NxD: np.ndarray,
    train_label_N: np.ndarray,
    test_NxD: np.ndarray,
    test_label_N: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int,
    max_iterations: int = 2000,
) -> ProbeResult:
    """The accuracy of multinomial logistic regression on the test part, with what was chosen on the way.

    The probe of arXiv:2309.16588, section 2 and Table 1, which names neither solver nor penalty. Here:
    scikit-learn's L-BFGS with an L2 penalty; features standardised by the training part; C, the inverse
    weight of the penalty beside the summed loss, taken from `strengths` by accuracy on a fifth of each
    class of the training part (drawn by `seed`), then refitted on all of it. Of equal accuracies the one
    of smaller log loss is taken: a small held-out part often cannot tell by accuracy, and the smallest C
    may know no more than the commonest class. With one strength nothing is held out. Everything is in
    float64, and features are held twice.

    A class with one training example stays in the fit and out of the held-out part. Two classes are
    fitted by one logistic function, the softmax of two with half its penalty. Raises DataError
    where there are fewer than two classes or no test examples, for features that are not finite, and
    where several strengths are to be compared but no class has two examples.
    """
    train_NxD, test_NxD = np.asarray(train_NxD, np.float64), np.asarray(test_NxD, np.float64)
    train_label_N, test_label_N = np.asarray(train_label_N), np.asarray(test_label_N)
    _check(train_NxD, train_label_N, test_NxD, test_label_N)
    strengths = sorted(strengths)
    strength = strengths[0]
    if len(strengths) > 1:
        is_held_out_N = _held_out(train_label_N, np.random.default_rng(seed))
        strength = _choose_strength(train_NxD, train_label_N, is_held_out_N, strengths, max_iterations)
    scaler = StandardScaler().fit(train_NxD)
    model, is_converged = _fit(_scaled(scaler, train_NxD), train_label_N, strength, max_iterations)
    predicted_N = model.predict(_scaled(scaler, test_NxD))
    return ProbeResult(
        accuracy=float(np.mean(predicted_N == test_label_N)),
        strength=strength,
        num_train=len(train_NxD),
        num_test=len(test_NxD),
        num_unseen=int((~np.isin(test_label_N, train_label_N)).sum()),
        is_converged=is_converged,
    )


def _check(
    train_NxD: np.ndarray, train_label_N: np.ndarray, test_NxD: np.ndarray, test_label_N: np.ndarray
) -> None:
    assert train_NxD.ndim == 2 and test_NxD.shape[1:] == train_NxD.shape[1:], (
        train_NxD.shape,
        test_NxD.shape,
    )
    assert train_label_N.shape == train_NxD.shape[:1] and test_label_N.shape == test_NxD.shape[:1]
    num_classes = len(np.unique(train_label_N))
    if num_classes < 2:
        raise DataError(
            f"the {len(train_NxD)} training examples of the probe have {num_classes} class(es): at "
            "least 2 are required; take more images, or shuffle them if they are sorted by class"
        )
    if len(test_NxD) == 0:
        raise DataError("the probe has no test examples: take more test images")
    for part, token_NxD in (("training", train_NxD), ("test", test_NxD)):
        broken = np.flatnonzero(~np.isfinite(token_NxD).all(axis=1))
        if len(broken):
            raise DataError(
                f"{len(broken)} of {len(token_NxD)} {part} tokens of the probe are not finite, the first in "
                f"row {broken[0]}: extract them in float32"
            )


def _held_out(label_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True for a fifth of each class, at least one example of it, and never the only one."""
    is_held_out_N = np.zeros(len(label_N), bool)
    order_N = rng.permutation(len(label_N))
    for label in np.unique(label_N):
        members = order_N[label_N[order_N] == label]
        if len(members) > 1:
            is_held_out_N[members[: max(1, round(HELD_OUT * len(members)))]] = True
    if not is_held_out_N.any():
        raise DataError(
            "no class of the probe has two training examples, so no C can be chosen on held-out ones: "
            "take more images per class, or give a single strength"
        )
    return is_held_out_N


def _choose_strength(
    train_NxD: np.ndarray,
    label_N: np.ndarray,
    is_held_out_N: np.ndarray,
    strengths: Sequence[float],
    max_iterations: int,
) -> float:
    scaler = StandardScaler().fit(train_NxD[~is_held_out_N])
    fit_NxD = _scaled(scaler, train_NxD[~is_held_out_N])
    held_out_NxD = _scaled(scaler, train_NxD[is_held_out_N])
    scores = []
    for strength in strengths:
        model, _ = _fit(fit_NxD, label_N[~is_held_out_N], strength, max_iterations)
        probability_NxY = model.predict_proba(held_out_NxD)
        accuracy = model.score(held_out_NxD, label_N[is_held_out_N])
        loss = log_loss(label_N[is_held_out_N], probability_NxY, labels=model.classes_)
        scores.append((accuracy, -loss))
    return strengths[scores.index(max(scores))]


def _scaled(scaler: StandardScaler, token_NxD: np.ndarray) -> np.ndarray:
    return np.asarray(scaler.transform(token_NxD))


def _fit(
    token_NxD: np.ndarray, label_N: np.ndarray, strength: float, max_iterations: int
) -> tuple[LogisticRegression, bool]:
    """The fitted model, and whether L-BFGS met its tolerance; that it did not is no warning."""
    # At 1e-4, the default, rounding decides where a weak penalty stops: accuracies moved by up to 7 points.
    model = LogisticRegression(tol=1e-8, C=strength, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(token_NxD, label_N)
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for w in others:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
    return model, len(others) == len(caught)


def _middle(is_outlier_BxP: np.ndarray, grid: Grid) -> np.ndarray:
    """The middle patch only; on even sides, the one below and right of the centre."""
    rows, columns = grid
    is_middle_P = np.arange(rows * columns) == rows // 2 * columns + columns // 2
    return np.broadcast_to(is_middle_P, is_outlier_BxP.shape)


TOKEN_KINDS: dict[str, Callable[[np.ndarray, Grid], np.ndarray]] = {
    "outlier": lambda is_outlier_BxP, grid: is_outlier_BxP,
    "normal": lambda is_outlier_BxP, grid: ~is_outlier_BxP,
    "center": _middle,
}


def choose_tokens(
    is_outlier_BxP: np.ndarray, kind: str, *, grid: Grid, seed: int, among_B: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(index_B, has_B): one patch of the kind for each image, drawn evenly, and which images have one.

    Kinds are "outlier" and "normal" of arXiv:2309.16588, Table 1, and "center" of arXiv:2506.08010,
    Table 1: the middle patch, below and right of the centre on even sides, whatever its norm.

    The paper does not say what becomes of images without an outlier. Here they are left out, of the
    other rows too, so that rows compare the same images: give the has_B of "outlier" as `among_B`,

        index_B, has_B = choose_tokens(is_outlier_BxP, "outlier", grid=grid, seed=0)
        normal_B, has_both_B = choose_tokens(is_outlier_BxP, "normal", grid=grid, seed=0, among_B=has_B)
        token_NxD = token_BxPxD[has_both_B, normal_B[has_both_B]]

    `among_B` does not change what is drawn for the images that stay. has_both_B is narrower than has_B
    only by images that are all outliers. Where has_B is False, index_B is 0 and means nothing. Raises
    ConfigError for an unknown kind.
    """
    assert is_outlier_BxP.dtype == bool and is_outlier_BxP.shape[1] == grid[0] * grid[1]
    allowed_BxP = lookup(TOKEN_KINDS, kind, "kind")(is_outlier_BxP, grid)
    place_BxP = allowed_BxP.cumsum(axis=1, dtype=np.int32)  # the rank among the allowed patches, from 1
    count_B = place_BxP[:, -1]
    drawn_B = np.random.default_rng(seed).integers(0, np.maximum(count_B, 1))
    has_B = count_B > 0
    if among_B is not None:
        assert among_B.dtype == bool and among_B.shape == has_B.shape
        has_B &= among_B
    index_B = (place_BxP > drawn_B[:, None]).argmax(axis=1)
    return np.where(has_B, index_B, 0), has_B


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeInputs:
    """The features of one kind of token, for one seed of the choice, and how many images had none."""

    train_NxD: np.ndarray
    train_label_N: np.ndarray
    test_NxD: np.ndarray
    test_label_N: np.ndarray
    num_skipped: int  # images left out of both parts together


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalProbeRow:
    """One row of Tables 1 and 6 of arXiv:2309.16588. Counts are of images, the same for every seed."""

    kind: str
    accuracy: float | None  # mean over seeds, as a fraction; None where no image has such a token
    std: float | None  # sample standard deviation over seeds; None for fewer than two
    num_seeds: int
    num_train: int
    num_test: int
    num_skipped: int
    strengths: tuple[float, ...]  # the C of each seed; one at an end of the range says: widen it
    is_converged: bool  # all of them


def global_probe(
    inputs: Mapping[str, Sequence[ProbeInputs]], *, strengths: Sequence[float] = STRENGTHS
) -> tuple[GlobalProbeRow, ...]:
    """One row per kind of token: mean and standard deviation of `logistic_probe` over the kind's seeds.

    Table 1 of arXiv:2309.16588, whose deviations come from the random choice of patches alone, and the
    tables of "Registers in Small ViTs", section 4.7, over 3 seeds; accuracies there look like those of
    training images, here they are of the test part. `inputs` holds one entry per seed of `choose_tokens`,
    so that a kind without choice (cls, a register, the centre) has one entry and no deviation. Held-out
    parts are drawn with the place of the entry: the n-th entries of all kinds have the same one where
    their images are the same.

    All seeds of a kind must hold the same images. A kind without training or without test images has
    neither mean nor deviation. Raises DataError as `logistic_probe` does, with the kind.
    """
    return tuple(_row(kind, entries, strengths) for kind, entries in inputs.items())


def _row(kind: str, entries: Sequence[ProbeInputs], strengths: Sequence[float]) -> GlobalProbeRow:
    counts = {(len(part.train_NxD), len(part.test_NxD), part.num_skipped) for part in entries}
    assert len(counts) == 1, f"{kind}: seeds of other images: {counts}"
    num_train, num_test, num_skipped = counts.pop()
    results = []
    for seed, part in enumerate(entries if num_train and num_test else ()):
        arrays = (part.train_NxD, part.train_label_N, part.test_NxD, part.test_label_N)
        try:
            results.append(logistic_probe(*arrays, strengths=strengths, seed=seed))
        except DataError as error:
            raise DataError(f"tokens of kind '{kind}', seed {seed}: {error}") from error
    accuracies = [result.accuracy for result in results]
    return GlobalProbeRow(
        kind=kind,
        accuracy=float(np.mean(accuracies)) if results else None,
        std=float(np.std(accuracies, ddof=1)) if len(results) > 1 else None,
        num_seeds=len(results),
        num_train=num_train,
        num_test=num_test,
        num_skipped=num_skipped,
        strengths=tuple(result.strength for result in results),
        is_converged=all(result.is_converged for result in results),
    )
