"""Classification by the nearest of other images, with the votes of evaluation/neighbours.py. Uses JAX."""

from collections.abc import Sequence

import jax.numpy as jnp
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
    bank = Bank(unit_features(jnp.asarray(train_NxD))[None], jnp.asarray(train_label_N, jnp.int32)[None])
    right: dict[int, list[np.ndarray]] = {k: [] for k in neighbors}
    for start in range(0, len(test_MxD), _QUERIES):
        query_QxD = unit_features(jnp.asarray(test_MxD[start : start + _QUERIES]))
        similarity_QxJ, label_QxJ = nearest_rows(bank, query_QxD, MOST_NEIGHBOURS)
        each = votes(similarity_QxJ, label_QxJ, num_classes=num_classes, numbers=neighbors)
        own_Q = test_label_M[start : start + _QUERIES]
        for k, votes_QxY in zip(neighbors, each, strict=True):
            right[k].append(np.asarray(votes_QxY.argmax(axis=-1)) == own_Q)
    return {k: np.concatenate([np.zeros(0, bool), *parts]) for k, parts in right.items()}
