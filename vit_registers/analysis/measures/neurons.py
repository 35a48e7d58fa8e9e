"""Neurons that produce outliers: scores, the block where outliers appear, selections.

arXiv:2506.08010, algorithm 1 and appendix A.4. A neuron is a hidden unit of an MLP after its activation (for
SwiGLU the gated value), identified by its block and its index, both from 0.
"""

import numpy as np


def neuron_scores(
    neurons_Bx2xLxF: np.ndarray, has_outlier_B: np.ndarray, has_other_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(score_LxF, others_LxF): mean absolute activations on outliers and on other patches.

    The mean over an image's patches comes first, then the mean over images, as in algorithm 1; absolute
    values are those of its code. Images without outliers are excluded; `others` is None if no image with
    outliers has other patches. cls is never an outlier. Computed image by image, to save memory.
    """
    assert has_outlier_B.any(), "no image has an outlier"
    total = np.zeros(neurons_Bx2xLxF.shape[1:])
    for image in np.flatnonzero(has_outlier_B):
        total += neurons_Bx2xLxF[image]  # zeros if it has no other patches
    score_LxF, others_LxF = total
    number = int((has_outlier_B & has_other_B).sum())
    return score_LxF / has_outlier_B.sum(), others_LxF / number if number else None


def first_block(norm_BxLxP: np.ndarray, is_outlier_BxP: np.ndarray, threshold: float) -> int:
    """The first block after which most of the outliers are above the threshold, else the last block.

    `norm_BxLxP` has the norms before the first block (layer 0) and after each; `is_outlier_BxP` are the
    outliers of the last layer by that threshold. The paper takes the block from a figure.
    """
    assert is_outlier_BxP.any(), "no outliers"
    depth = norm_BxLxP.shape[1] - 1
    for block in range(depth):
        if (norm_BxLxP[:, block + 1][is_outlier_BxP] > threshold).mean() > 0.5:
            return block
    return depth - 1


def highest(score_LxF: np.ndarray, last_block: int) -> np.ndarray:
    """neuron_Ex2: (block, neuron) of all neurons up to `last_block`, the highest score first."""
    kept_LxF = score_LxF[: last_block + 1]
    order = np.argsort(-kept_LxF, axis=None, kind="stable")
    return np.stack(np.unravel_index(order, kept_LxF.shape), axis=1)


def random_like(neuron_Ex2: np.ndarray, num_hidden: int, *, seed: int) -> np.ndarray:
    """The control, neuron_Ex2: the same number of other neurons of the same blocks, at random."""
    rng, chosen = np.random.default_rng(seed), []
    for block, count in zip(*np.unique(neuron_Ex2[:, 0], return_counts=True), strict=True):
        own = neuron_Ex2[neuron_Ex2[:, 0] == block, 1]
        free = np.setdiff1d(np.arange(num_hidden), own)
        chosen += [(block, neuron) for neuron in rng.choice(free, min(count, len(free)), replace=False)]
    return np.array(chosen, int).reshape(-1, 2)


def as_mask(neuron_Ex2: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """is_neuron_LxF of the neurons named."""
    is_neuron_LxF = np.zeros(shape, bool)
    is_neuron_LxF[neuron_Ex2[:, 0], neuron_Ex2[:, 1]] = True
    return is_neuron_LxF


def random_patches(is_outlier_BxP: np.ndarray, *, seed: int) -> np.ndarray:
    """is_chosen_BxP: random patches that are no outliers, in each image the number of its outliers or all."""
    rng = np.random.default_rng(seed)
    order_BxP = np.argsort(np.where(is_outlier_BxP, 2.0, rng.random(is_outlier_BxP.shape)), axis=1)
    rank_BxP = np.argsort(order_BxP, axis=1)
    return (rank_BxP < is_outlier_BxP.sum(1, keepdims=True)) & ~is_outlier_BxP
