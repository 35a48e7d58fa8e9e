"""Inference on an image that is larger than the model's, by windows that overlap."""

from collections.abc import Callable

import numpy as np

# (window_BxHxWxC) -> logit_BxHxWxY, float32
Predict = Callable[[np.ndarray], np.ndarray]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """The first pixels of the windows along one side. The last window ends with the side."""
    number = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(number)]


def sliding_logits(
    predict: Predict, image_HxWxC: np.ndarray, *, window: int, stride: int, batch: int
) -> np.ndarray:
    """logit_HxWxY of an image: at each pixel the mean of the logits of the windows that cover it.

    `predict` is called with `batch` windows each time, of which the last ones may be repetitions. A side that
    is shorter than the window is covered by one window of its length.
    """
    height, width = (min(window, side) for side in image_HxWxC.shape[:2])
    rows = window_starts(image_HxWxC.shape[0], window, stride)
    columns = window_starts(image_HxWxC.shape[1], window, stride)
    corners = [(y, x) for y in rows for x in columns]
    total, count_HxWx1 = None, np.zeros((*image_HxWxC.shape[:2], 1), np.float32)
    for first in range(0, len(corners), batch):
        chosen = corners[first : first + batch]
        padded = chosen + chosen[-1:] * (batch - len(chosen))
        logits = predict(np.stack([image_HxWxC[y : y + height, x : x + width] for y, x in padded]))
        if total is None:
            total = np.zeros((*image_HxWxC.shape[:2], logits.shape[-1]), np.float32)
        for (y, x), logit_HxWxY in zip(chosen, logits, strict=False):
            total[y : y + height, x : x + width] += logit_HxWxY
            count_HxWx1[y : y + height, x : x + width] += 1
    assert total is not None
    return total / count_HxWx1


def predicted_classes(logit_HxWxY: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of the highest logit at each pixel of an image of `size`, int32.

    The logits are resized by bilinear interpolation without antialiasing, a row of pixels at a time, so that
    the logits of a large image are never all in memory.
    """
    height, width = size
    top_H, bottom_H, weight_H = _neighbours(logit_HxWxY.shape[0], height)
    left_W, right_W, weight_W = _neighbours(logit_HxWxY.shape[1], width)
    classes_HxW = np.empty(size, np.int32)
    for y in range(height):
        row_WxY = logit_HxWxY[top_H[y]] * (1 - weight_H[y]) + logit_HxWxY[bottom_H[y]] * weight_H[y]
        pixels_WxY = row_WxY[left_W] * (1 - weight_W)[:, None] + row_WxY[right_W] * weight_W[:, None]
        classes_HxW[y] = pixels_WxY.argmax(axis=-1)
    return classes_HxW


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower, upper, weight of the upper) pixel of the old side for each pixel of the new side."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    lower = np.floor(place).astype(np.int64)
    return lower, np.minimum(lower + 1, old - 1), (place - lower).astype(np.float32)
