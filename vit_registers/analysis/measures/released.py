"""The probe of section 4.2.1 as the public code of "Registers in Small Vision Transformers" computes it.

Its targets are the image's values cut into runs, as many as there are patches, but not the values of a patch:
with channels first in training and channels last in evaluation. Its result is a sum over batches of 64 images
of their mean squared errors (61 batches there), which the paper calls mean squared error.

Deviations: in evaluation, that code runs the patches through the model without cls and takes them after the
final norm; here all tokens are present and patches are taken before that norm, as in training. It also
selects the epoch by the error on the test images; here the last of the five is used.
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
    """The targets of training, BxPxM: the values channel by channel, in runs of M, not patches."""
    size = patch_size**2 * image_BxHxWxC.shape[3]
    return np.moveaxis(image_BxHxWxC, 3, 1).reshape(len(image_BxHxWxC), -1, size)


def cut_channels_last(image_BxHxWxC: np.ndarray, patch_size: int) -> np.ndarray:
    """The targets of evaluation, BxPxM: the values row by row, in runs of M, not patches."""
    return image_BxHxWxC.reshape(len(image_BxHxWxC), -1, patch_size**2 * image_BxHxWxC.shape[3])


def fit_released(pairs: Pairs, *, seed: int) -> Predict:
    """The MLP D -> 4 D -> M after five epochs on tokens that are not standardised, with images in order."""
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

    As there, an incomplete last batch is dropped; here fewer than 64 images are one batch. A batch without
    tokens of a kind adds nothing (there: the sum is NaN). The L2 error of that code is over all tokens, and
    along them instead of along the pixels: it has no counterpart here.
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
