"""Classifiers trained on one image per class, tested on terms of cls (arXiv:2505.05892, section 3.3)."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from vit_registers.analysis.measures.severity import finite
from vit_registers.config import lookup
from vit_registers.errors import DataError
from vit_registers.evaluation.threads import threads_for


class OneShot(NamedTuple):
    """Accuracies from 0 to 1 per term, over `num_classes` test images."""

    num_classes: int
    top1: dict[str, float]
    top5: dict[str, float] | None  # None for 5 classes or fewer, where it would be 1


def _draw(label_N: np.ndarray, num_each: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(label_Y, row_Yxnum): different random rows of each class that has enough, in the classes' order."""
    label_N = np.asarray(label_N)
    mixed_N = rng.permutation(len(label_N))
    row_N = mixed_N[np.argsort(label_N[mixed_N], kind="stable")]
    label_Y, start_Y, count_Y = np.unique(label_N[row_N], return_index=True, return_counts=True)
    has_enough_Y = count_Y >= num_each
    return label_Y[has_enough_Y], row_N[start_Y[has_enough_Y][:, None] + np.arange(num_each)[None]]


def draw_pairs(label_N: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train_Y, test_Y): two different rows of every class that has two, in the order of the classes.

    arXiv:2505.05892, section 3.3, draws training and test images from one split. Here no image is in both.
    """
    _, row_Yx2 = _draw(label_N, 2, np.random.default_rng(seed))
    return row_Yx2[:, 0], row_Yx2[:, 1]


def draw_one(label_N: np.ndarray, *, seed: int) -> np.ndarray:
    """row_Y: a random row of each class, in the order of the classes."""
    return _draw(label_N, 1, np.random.default_rng(seed))[1][:, 0]


def one_shot(
    full_NxD: np.ndarray,
    label_N: np.ndarray,
    test_terms: Mapping[str, np.ndarray],
    test_label_M: np.ndarray,
    *,
    seed: int,
    classifier: str,
) -> OneShot:
    """Top-1 and top-5 of a classifier trained on one full output per class, tested on each term_MxD.

    arXiv:2505.05892, section 3.3 and figure 3b. One training and one test image per class are drawn with
    `seed` from different images (`draw_pairs`); a class without one of them is excluded. The paper does not
    specify the classifier: "logistic" is multinomial logistic regression (C = 1, features divided by the root
    mean square of the training features, as models differ in scale), "nearest" the highest cosine. Of equal
    scores the lower class wins, so a term of zeros has chance accuracy. Raises DataError for fewer than two
    classes, ConfigError for an unknown classifier.
    """
    scores_of = lookup(_CLASSIFIERS, classifier, "classifier")
    rng = np.random.default_rng(seed)
    (train_label, train_row), (test_label, test_row) = _draw(label_N, 1, rng), _draw(test_label_M, 1, rng)
    common, train_at, test_at = np.intersect1d(train_label, test_label, return_indices=True)
    if len(common) < 2:
        raise DataError(f"{len(common)} classes have a training and a test image: one-shot needs two or more")
    train_YxD = finite(np.asarray(full_NxD)[train_row[train_at, 0]], "the full outputs")
    tests = {
        name: finite(np.asarray(term_MxD)[test_row[test_at, 0]], f"the term '{name}'")
        for name, term_MxD in test_terms.items()
    }
    rank_Y = {name: _ranks(scores) for name, scores in scores_of(train_YxD, tests).items()}
    top1, top5 = ({name: float((x < k).mean()) for name, x in rank_Y.items()} for k in (1, 5))
    return OneShot(len(common), top1, top5 if len(common) > 5 else None)


def _ranks(score_YxY: np.ndarray) -> np.ndarray:
    order_YxY = np.argsort(-score_YxY, axis=1, kind="stable")
    return np.argmax(order_YxY == np.arange(len(score_YxY))[:, None], axis=1)


def _logistic(train_YxD: np.ndarray, tests: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    scale = np.sqrt(np.square(train_YxD).mean()) or 1.0
    with warnings.catch_warnings(), threads_for(train_YxD.size * len(train_YxD)):
        # With one image per class, scikit-learn warns that the labels look like those of a regression.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        fitted = LogisticRegression(max_iter=1000).fit(train_YxD / scale, np.arange(len(train_YxD)))
    scores = {name: fitted.decision_function(test_YxD / scale) for name, test_YxD in tests.items()}
    # For two classes scikit-learn returns the second one's score only.
    return {name: np.stack([-x, x], axis=1) if x.ndim == 1 else x for name, x in scores.items()}


def _nearest(train_YxD: np.ndarray, tests: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    train, *others = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
        for x in (train_YxD, *tests.values())
    )
    return {name: x @ train.T for name, x in zip(tests, others, strict=True)}


_CLASSIFIERS = {"logistic": _logistic, "nearest": _nearest}
