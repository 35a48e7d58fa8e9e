"""Training examples of segmentation: random scale, crop, flip and colors, as of the released heads."""

import numpy as np

from vit_registers.data.sources.dense import IGNORED, DensePair
from vit_registers.evaluation.dense.examples import DenseExample
from vit_registers.evaluation.dense.images import distorted, resize_and_cut, size_of_short_side

_SCALES = (0.5, 2.0)
_MOST_OF_ONE_CLASS = 0.75  # of the labelled pixels of a crop
_NUM_TRIES = 10


def training_example(
    pair: DensePair, rng: np.random.Generator, *, short_side: int, crop: int, is_augmented: bool
) -> DenseExample:
    """A square crop of `crop` px, padded with 0 and IGNORED to the right and below.

    The short side of the image is scaled to `short_side`, times U(0.5, 2) with `is_augmented`. A crop with
    one class on more than 0.75 of its labelled pixels is drawn again, up to 10 times. With `is_augmented` it
    is also flipped with probability 0.5, and its colors are distorted.
    """
    shape = (pair.label_HxW.shape[0], pair.label_HxW.shape[1])
    scaled_side = int(short_side * rng.uniform(*_SCALES)) if is_augmented else short_side
    size = size_of_short_side(shape, max(scaled_side, 1))
    part = (min(crop, size[0]), min(crop, size[1]))
    top_left, label_HxW = _crop(pair.label_HxW, size, part, rng)
    image_HxWxC = resize_and_cut(pair.image_HxWxC, size, top_left, part)
    if is_augmented:
        if rng.random() < 0.5:
            image_HxWxC, label_HxW = image_HxWxC[:, ::-1], label_HxW[:, ::-1]
        image_HxWxC = distorted(image_HxWxC, rng)
    missing = ((0, crop - part[0]), (0, crop - part[1]))
    return DenseExample(
        np.pad(image_HxWxC, (*missing, (0, 0))),
        np.pad(label_HxW, missing, constant_values=IGNORED).astype(np.int32),
        part,
    )


def _crop(
    label_HxW: np.ndarray, size: tuple[int, int], part: tuple[int, int], rng: np.random.Generator
) -> tuple[tuple[int, int], np.ndarray]:
    """((top, left), labels) of a part of the labels resized to `size`."""

    def draw() -> tuple[tuple[int, int], np.ndarray]:
        top, left = (int(rng.integers(0, a - b + 1)) for a, b in zip(size, part, strict=True))
        return (top, left), resize_and_cut(label_HxW, size, (top, left), part)

    found = draw()
    for _ in range(_NUM_TRIES):
        number_Y = np.bincount(found[1][found[1] != IGNORED].astype(np.int64))
        if np.count_nonzero(number_Y) > 1 and number_Y.max() < _MOST_OF_ONE_CLASS * number_Y.sum():
            break
        if part == size:  # there is only one crop
            break
        found = draw()
    return found
