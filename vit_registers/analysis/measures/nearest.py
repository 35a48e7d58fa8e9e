"""Classification by the nearest of other images, with the votes of evaluation/neighbours.py. Uses JAX."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from vit_registers.evaluation.neighbours import MOST_NEIGHBOURS, Bank, nearest_rows, unit_features, votes

_QUERIES = 256  # at once


def knn_right(
    train_NxD: np.ndarray,
    train_label_N: np.ndarray,
    test_MxD: np.ndarray,
    test_label_M: np.ndarray,
    *,
    num_classes: int,
    neighbors: Sequence[int],
) -> dict[int, np.ndarray]:
    """{k: is_right_M}, whether the weighted vote of the k nearest training images gives the label.

    The protocol of DINOv2: cosines, softmax with temperature .07 over the nearest 200. Of equal votes the
    lower class wins.
    """
    bank = _make_bank(train_NxD, train_label_N.astype(np.int32))
    right: dict[int, list[np.ndarray]] = {k: [] for k in neighbors}
    for start in range(0, len(test_MxD), _QUERIES):
        part = slice(start, start + _QUERIES)
        choices = _choices(bank, test_MxD[part], num_classes, tuple(neighbors))
        for k, choice_Q in zip(neighbors, choices, strict=True):
            right[k].append(np.asarray(choice_Q) == test_label_M[part])
    return {k: np.concatenate([np.zeros(0, bool), *parts]) for k, parts in right.items()}


# Compiled whole: each operation on its own would be compiled for each new number of images.
@jax.jit
def _make_bank(train_NxD: jax.Array, label_N: jax.Array) -> Bank:
    return Bank(unit_features(train_NxD)[None], label_N[None])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _choices(
    bank: Bank, test_QxD: jax.Array, num_classes: int, neighbors: tuple[int, ...]
) -> list[jax.Array]:
    """The class with the most votes of each query, for each number of neighbours."""
    similarity_QxJ, label_QxJ = nearest_rows(bank, unit_features(test_QxD), MOST_NEIGHBOURS)
    each = votes(similarity_QxJ, label_QxJ, num_classes=num_classes, numbers=neighbors)
    return [votes_QxY.argmax(axis=-1) for votes_QxY in each]
