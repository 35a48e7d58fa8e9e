"""Scenes of handwritten digits with a class and a depth for each pixel. They need no download.

A scene is a canvas of 3 x 3 cells of 8 x 8 pixels, on which digits of scikit-learn's data set are pasted. A
digit is enlarged 1 to 1.5 times: a larger one is nearer, and covers those behind it. Scenes are a smoke test
of dense evaluation, not a benchmark: depth can be read from the size of the strokes.
"""

import functools
from typing import NamedTuple

import numpy as np

from vit_registers.data.sources.dense import DEPTH, DensePair, DenseSource, check_split
from vit_registers.data.sources.digits import CLASS_NAMES as DIGIT_NAMES
from vit_registers.data.sources.digits import load_split

NUM_SCENES = {"train": 1000, "test": 200}
CLASS_NAMES = ("background", *DIGIT_NAMES)
SIDE = 24  # pixels
BACKGROUND_M, DIGIT_M = 4.0, 3.0  # metres: depth of the background, and of a digit that is not enlarged
_CELLS, _CELL, _SHIFT = 3, 8, 1
_MOST_ENLARGED = 1.5
_OCCUPIED = 0.6  # the probability that a cell has a digit
_LEAST_INK = 64  # of 255: pixels with less show what is behind


class Scene(NamedTuple):
    """One image with its labels."""

    image_HxWx1: np.ndarray  # uint8
    class_HxW: np.ndarray  # uint8, of CLASS_NAMES
    depth_HxW: np.ndarray  # float32, metres


def scene(split: str, index: int, *, seed: int = 0) -> Scene:
    """The scene `index` of a split, a function of the seed, the split and the index.

    Scenes of "train" and "test" have no digit in common. Raises DataError for another split.
    """
    check_split("digit_scenes", split, [*NUM_SCENES])
    digit_NxHxWx1, label_N = load_split(split)
    rng = np.random.default_rng([seed, [*NUM_SCENES].index(split), index])
    is_occupied = rng.random(_CELLS**2) < _OCCUPIED
    is_occupied[rng.integers(_CELLS**2)] = True
    cells = np.flatnonzero(is_occupied)
    factors = rng.uniform(1, _MOST_ENLARGED, len(cells))
    image_HxW = np.zeros((SIDE, SIDE), np.uint8)
    class_HxW = np.zeros((SIDE, SIDE), np.uint8)
    depth_HxW = np.full((SIDE, SIDE), BACKGROUND_M, np.float32)
    for i in np.argsort(factors):  # the farthest first
        record = rng.integers(len(label_N))
        ink_HxW = _enlarged(digit_NxHxWx1[record, ..., 0], round(_CELL * float(factors[i])))
        row, column = divmod(int(cells[i]), _CELLS)
        shift = rng.integers(-_SHIFT, _SHIFT + 1, 2) - (len(ink_HxW) - _CELL) // 2
        top, left = row * _CELL + shift[0], column * _CELL + shift[1]
        target, own = _overlap(top, left, len(ink_HxW))
        is_ink = ink_HxW[own] >= _LEAST_INK
        image_HxW[target][is_ink] = ink_HxW[own][is_ink]
        class_HxW[target][is_ink] = label_N[record] + 1
        depth_HxW[target][is_ink] = DIGIT_M * _CELL / len(ink_HxW)
    return Scene(image_HxW[..., None], class_HxW, depth_HxW)


def _enlarged(image_HxW: np.ndarray, side: int) -> np.ndarray:
    """The square image at `side` pixels by bilinear interpolation between pixel centres, uint8."""
    old = len(image_HxW)
    place = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, old - 1)
    lower = np.floor(place).astype(int)
    weight_NxH = np.zeros((side, old))
    weight_NxH[np.arange(side), lower] = 1 - (place - lower)
    weight_NxH[np.arange(side), np.minimum(lower + 1, old - 1)] += place - lower
    return np.round(weight_NxH @ image_HxW @ weight_NxH.T).astype(np.uint8)


def _overlap(top: int, left: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """(pixels of the canvas, pixels of the digit) of a digit at (top, left), which may reach outside."""
    target = tuple(slice(max(start, 0), min(start + side, SIDE)) for start in (top, left))
    own = tuple(slice(t.start - s, t.stop - s) for t, s in zip(target, (top, left), strict=True))
    return (target[0], target[1]), (own[0], own[1])


@functools.lru_cache(maxsize=sum(NUM_SCENES.values()))
def _kept_scene(split: str, index: int) -> Scene:
    kept = scene(split, index)
    for array in kept:
        array.setflags(write=False)
    return kept


class DigitScenes(DenseSource):
    """The scenes of seed 0, with the class of each pixel or its depth."""

    name = protocol = "digit_scenes"
    image_size = (SIDE, SIDE)

    def __init__(self, kind: str) -> None:
        """`kind` is CLASSES or DEPTH."""
        self.kind = kind
        self.class_names = () if kind == DEPTH else CLASS_NAMES

    def num_examples(self, split: str) -> int:
        check_split(self.name, split, [*NUM_SCENES])
        return NUM_SCENES[split]

    def read(self, split: str, i: int, channels: int) -> DensePair:
        image_HxWx1, class_HxW, depth_HxW = _kept_scene(split, i)
        label_HxW = depth_HxW if self.kind == DEPTH else class_HxW.astype(np.int32)
        return DensePair(np.repeat(image_HxWx1, channels, axis=2), label_HxW)
