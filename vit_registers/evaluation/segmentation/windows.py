"""Inference on an image that is larger than the model's, by windows that overlap."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

# (window_BxHxWxC) -> logit_BxHxWxY, float32: an array that NumPy can read, such as one of JAX
Predict = Callable[[np.ndarray], Any]
Corner = tuple[int, int]  # (top, left)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """The first pixels of the windows along one side. The last window ends with the side."""
    number = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(number)]


def sliding_logits(
    predict: Predict, images: Iterable[np.ndarray], *, window: int, stride: int, batch: int
) -> Iterator[np.ndarray]:
    """logit_HxWxY of each image, HxWxC: at each pixel the mean of the logits of the windows that cover it.

    `predict` is called with `batch` windows each time, of several images where these have one size; the last
    windows may be repetitions. A side that is shorter than the window is covered by one window of its length.
    A call is made before the result of the one before it is read, so that the devices have work.
    """
    open_sums: collections.deque[_Sum] = collections.deque()
    waiting: list[tuple[_Sum, Corner]] = []  # windows of one shape
    called: collections.deque[tuple[list[tuple[_Sum, Corner]], Any]] = collections.deque()

    def call() -> None:
        padded = waiting + waiting[-1:] * (batch - len(waiting))
        called.append(([*waiting], predict(np.stack([part.window(corner) for part, corner in padded]))))
        waiting.clear()
        read(1)

    def read(number: int) -> None:
        """Adds the results of all calls but the last `number` to their images."""
        while len(called) > number:
            places, logits = called.popleft()
            for (part, corner), logit_HxWxY in zip(places, np.asarray(logits), strict=False):
                part.add(corner, logit_HxWxY)

    def finished() -> Iterator[np.ndarray]:
        """The images that are complete."""
        while open_sums and open_sums[0].is_complete:
            yield open_sums.popleft().mean()

    for image_HxWxC in images:
        part = _Sum(image_HxWxC, window, stride)
        if waiting and waiting[0][0].shape != part.shape:
            call()
        open_sums.append(part)
        for corner in part.corners:
            waiting.append((part, corner))
            if len(waiting) == batch:
                call()
        yield from finished()
    if waiting:
        call()
    read(0)
    yield from finished()


class _Sum:
    """The sum of the logits of an image's windows."""

    def __init__(self, image_HxWxC: np.ndarray, window: int, stride: int) -> None:
        height, width = image_HxWxC.shape[:2]
        self._image_HxWxC = image_HxWxC
        self.shape = (min(window, height), min(window, width))
        rows, columns = (window_starts(side, window, stride) for side in (height, width))
        self.corners: list[Corner] = [(y, x) for y in rows for x in columns]
        self._missing = len(self.corners)
        self._total_HxWxY: np.ndarray | None = None
        self._count_HxWx1 = np.zeros((height, width, 1), np.float32)

    def window(self, corner: Corner) -> np.ndarray:
        return self._image_HxWxC[self._place(corner)]

    def _place(self, corner: Corner) -> tuple[slice, slice]:
        return (
            slice(corner[0], corner[0] + self.shape[0]),
            slice(corner[1], corner[1] + self.shape[1]),
        )

    def add(self, corner: Corner, logit_HxWxY: np.ndarray) -> None:
        if self._total_HxWxY is None:
            shape = (*self._image_HxWxC.shape[:2], logit_HxWxY.shape[-1])
            self._total_HxWxY = np.zeros(shape, np.float32)
        self._total_HxWxY[self._place(corner)] += logit_HxWxY
        self._count_HxWx1[self._place(corner)] += 1
        self._missing -= 1

    @property
    def is_complete(self) -> bool:
        return self._missing == 0

    def mean(self) -> np.ndarray:
        assert self._total_HxWxY is not None
        return self._total_HxWxY / self._count_HxWx1


def predicted_classes(logit_HxWxY: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of the highest logit at each pixel of an image of `size`, int32.

    The logits are resized by bilinear interpolation without antialiasing, a row of pixels at a time, so that
    the logits of a large image are never all in memory.
    """
    height, width = size
    if size == logit_HxWxY.shape[:2]:
        return logit_HxWxY.argmax(axis=-1).astype(np.int32)
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
