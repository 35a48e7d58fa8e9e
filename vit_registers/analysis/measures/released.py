"""The probe of section 4.2.1 as the public code of "Registers in Small Vision Transformers" computes it.

Its probe is given the image's values cut into as many pieces as there are patches, whatever their place: with
channels first in training and with channels last in evaluation. What it prints is a sum over batches of 64
images of their mean squared errors, which the paper calls mean squared error: 61 batches there.

Left out, as the features do not have it: in evaluation, that code sends the patches through the model without
cls, and takes them after the final norm. Here they are those of training: with all tokens, before that norm.
It also chooses its epoch by the error on the images that it is then scored on; here all five count.
"""

import dataclasses
import itertools

import numpy as np

from vit_registers.analysis.measures.reconstruction import (
    Pairs,
    Predict,
    ReconstructionScore,
    initial_mlp,
    train_mlp,
)

_BATCH_IMAGES = 64
_EPOCHS = 5


def cut_channels_first(image_BxHxWxC: np.ndarray, patch_size: int) -> np.ndarray:
    """The targets of training, BxPxM: the values channel by channel, in runs of M. They are no patches."""
    size = patch_size**2 * image_BxHxWxC.shape[3]
    return np.moveaxis(image_BxHxWxC, 3, 1).reshape(len(image_BxHxWxC), -1, size)


def cut_channels_last(image_BxHxWxC: np.ndarray, patch_size: int) -> np.ndarray:
    """The targets of evaluation, BxPxM: the values row by row, in runs of M. They are no patches."""
    return image_BxHxWxC.reshape(len(image_BxHxWxC), -1, patch_size**2 * image_BxHxWxC.shape[3])


def fit_released(pairs: Pairs, *, seed: int) -> Predict:
    """The MLP D -> 4 D -> M after five epochs on tokens that are not standardised, images in their order."""
    width = pairs.token_BxPxD.shape[2]
    pairs = dataclasses.replace(pairs, cut=cut_channels_first)
    return train_mlp(
        pairs,
        initial_mlp(np.random.default_rng(seed), pairs),
        itertools.repeat(np.arange(len(pairs)), _EPOCHS),
        (np.zeros(width), np.ones(width)),
        batch_images=_BATCH_IMAGES,
        learning_rate=1e-3,
    )


def score_released(
    predict: Predict, pairs: Pairs, is_outlier_BxP: np.ndarray
) -> tuple[ReconstructionScore, ReconstructionScore]:
    """Normal and outlier tokens, in this order: `mse` is the sum of the means of the batches, `l2` is None.

    As there, images that fill no batch are left out; here fewer than 64 are one batch. A batch without a
    token of a kind adds nothing (there: the sum is no number). The L2 error of that code is over all tokens
    together, and along them instead of along the pixels: it has no counterpart here.
    """
    assert is_outlier_BxP.dtype == bool and is_outlier_BxP.shape == pairs.token_BxPxD.shape[:2]
    pairs = dataclasses.replace(pairs, cut=cut_channels_last)
    size = min(_BATCH_IMAGES, len(pairs))
    totals, counts = [0.0, 0.0], [0, 0]
    for start in range(0, len(pairs) - size + 1, size) if size else ():
        images = slice(start, start + size)
        token_NxD, pixel_NxM = pairs.take(images)
        square_N = np.square(predict(token_NxD) - pixel_NxM, dtype=np.float64).mean(axis=1)
        is_outlier_N = is_outlier_BxP[images].ravel()
        for i, is_kind_N in enumerate((~is_outlier_N, is_outlier_N)):
            if is_kind_N.any():
                totals[i] += float(square_N[is_kind_N].mean())
                counts[i] += int(is_kind_N.sum())
    normal, outlier = (
        ReconstructionScore(kind=kind, num_tokens=count, mse=total if count else None, l2=None)
        for kind, total, count in zip(("normal", "outlier"), totals, counts, strict=True)
    )
    return normal, outlier
