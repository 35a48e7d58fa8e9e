"""Logistic regression on one token per image: how much information on the image a token has.

The axis letter N counts examples, one token each.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.preprocessing import StandardScaler

from vit_registers.analysis.measures.severity import finite
from vit_registers.config import lookup
from vit_registers.errors import DataError
from vit_registers.evaluation import logistic
from vit_registers.evaluation.threads import threads_for
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
    is_converged: bool  # of the final fit; False: stopped at the iteration limit, or by the line search


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
    """The accuracy of multinomial logistic regression on the test part, and the settings that it chose.

    The probe of arXiv:2309.16588, section 2 and Table 1, which specifies neither solver nor penalty. Here:
    scikit-learn's L-BFGS with an L2 penalty, on features standardised by the training part. C, the inverse
    weight of the penalty against the summed loss, is the one of `strengths` with the best accuracy on a fifth
    of each class of the training part (drawn by `seed`); then all of it is fitted. Of equal accuracies the
    one with the smaller log loss is chosen: a small held-out part often gives equal accuracies. With one
    strength nothing is held out. Computed in float64.

    A class with one training example is fitted and never held out; test examples of a class without training
    examples count as wrong. Two classes are fitted by one logistic function, the softmax of two with half its
    penalty. Raises DataError for fewer than two classes, no test examples, features that are not finite, and
    several strengths if no class has two examples.
    """
    train_label_N, test_label_N = np.asarray(train_label_N), np.asarray(test_label_N)
    assert train_NxD.ndim == 2 and test_NxD.shape[1:] == train_NxD.shape[1:], (
        train_NxD.shape,
        test_NxD.shape,
    )
    assert train_label_N.shape == train_NxD.shape[:1] and test_label_N.shape == test_NxD.shape[:1]
    if (num_classes := len(np.unique(train_label_N))) < 2:
        raise DataError(
            f"the {len(train_NxD)} training examples of the probe have {num_classes} class(es): at "
            "least 2 are required; take more images, or shuffle them if they are sorted by class"
        )
    if len(test_NxD) == 0:
        raise DataError("the probe has no test examples: take more test images")
    train_NxD = finite(train_NxD, "the training tokens of the probe")
    test_NxD = finite(test_NxD, "the test tokens of the probe")
    strengths = sorted(strengths)
    strength = strengths[0]
    with threads_for(train_NxD.size * num_classes):
        if len(strengths) > 1:
            is_held_out_N = _held_out(train_label_N, np.random.default_rng(seed))
            strength = _choose_strength(train_NxD, train_label_N, is_held_out_N, strengths, max_iterations)
        model = logistic.fit_logistic(
            train_NxD, train_label_N, strength=strength, max_iterations=max_iterations
        )
    return ProbeResult(
        accuracy=float(np.mean(model.predict(test_NxD) == test_label_N)),
        strength=strength,
        num_train=len(train_NxD),
        num_test=len(test_NxD),
        is_converged=model.is_converged,
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
    held_out_NxD, held_out_label_N = train_NxD[is_held_out_N], label_N[is_held_out_N]
    rest_NxD, rest_label_N = train_NxD[~is_held_out_N], label_N[~is_held_out_N]
    scaler = StandardScaler().fit(rest_NxD)  # once for all strengths
    rest_NxD, held_out_NxD = (np.asarray(scaler.transform(part)) for part in (rest_NxD, held_out_NxD))
    scores = []
    for strength in strengths:
        model = logistic.fit_scaled(rest_NxD, rest_label_N, strength=strength, max_iterations=max_iterations)
        accuracy = float(np.mean(model.predict(held_out_NxD) == held_out_label_N))
        scores.append((accuracy, -model.log_loss(held_out_NxD, held_out_label_N)))
    return strengths[scores.index(max(scores))]


def choose_tokens(
    is_outlier_BxP: np.ndarray, kind: str, *, grid: Grid, seed: int, among_B: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(index_B, has_B): one patch of the kind for each image, drawn evenly, and which images have one.

    Kinds are "outlier" and "normal" of arXiv:2309.16588, Table 1, and "center" of arXiv:2506.08010,
    Table 1: the middle patch, below and right of the centre on even sides, of any norm.

    The paper does not specify what happens to images without an outlier. Here they are excluded, also from
    the other rows, so that all rows are of the same images: pass the has_B of "outlier" as `among_B`, which
    does not change the choice for the other images. Where has_B is False, index_B is 0 and has no meaning.
    Raises ConfigError for an unknown kind.
    """
    rows, columns = grid
    assert is_outlier_BxP.dtype == bool and is_outlier_BxP.shape[1] == rows * columns
    is_middle_P = np.arange(rows * columns) == rows // 2 * columns + columns // 2
    is_middle_BxP = np.broadcast_to(is_middle_P, is_outlier_BxP.shape)
    kinds = {"outlier": is_outlier_BxP, "normal": ~is_outlier_BxP, "center": is_middle_BxP}
    allowed_BxP = lookup(kinds, kind, "kind")
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
    num_train: int
    num_test: int
    num_skipped: int
    strengths: tuple[float, ...]  # the C of each seed; at an end of the range, the range is too narrow
    is_converged: bool  # all of them


def global_probe(
    inputs: Mapping[str, Sequence[ProbeInputs]], *, strengths: Sequence[float] = STRENGTHS
) -> tuple[GlobalProbeRow, ...]:
    """One row per kind of token: mean and standard deviation of `logistic_probe` over the kind's seeds.

    Table 1 of arXiv:2309.16588, whose deviations come from the random choice of patches only, and the tables
    of "Registers in Small ViTs", section 4.7, over 3 seeds; accuracies there appear to be of training images,
    here they are of the test part. `inputs` has one entry per seed of `choose_tokens`, so a kind without
    choice (cls, a register, the centre) has one entry and no deviation. The index of an entry is the seed of
    its held-out part.

    All seeds of a kind must have the same images. A kind without training or without test images has neither
    mean nor deviation. Raises DataError as `logistic_probe` does, with the kind.
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
        num_train=num_train,
        num_test=num_test,
        num_skipped=num_skipped,
        strengths=tuple(result.strength for result in results),
        is_converged=all(result.is_converged for result in results),
    )
