"""The contract of a data set with a label for each pixel: a class or a depth. No JAX, no TensorFlow."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vit_registers.config import nearest
from vit_registers.errors import DataError

CLASSES, DEPTH = "classes", "depth"  # the kinds of labels
IGNORED = 255  # the class of pixels that neither train a head nor count in an evaluation
MAX_CLASSES = IGNORED


class DensePair(NamedTuple):
    """An image and its labels, of the same height and width."""

    image_HxWxC: np.ndarray  # uint8
    # Classes: int32, the index in class_names, or IGNORED. Depth: float32, metres, 0 where it is not known.
    label_HxW: np.ndarray


class DenseSource(Protocol):
    """Splits of images with a label for each pixel.

    A new source subclasses this protocol and implements the methods that have no default. Methods raise
    DataError for a split that does not exist.
    """

    name: str  # as errors name it
    protocol: str  # the data set whose settings are the defaults: SEGMENTATION and DEPTH of config/tasks.py
    kind: str  # CLASSES or DEPTH
    class_names: tuple[str, ...]  # empty for DEPTH
    first_label: int = 0  # the number that class 0 has in the files, for messages
    image_size: tuple[int, int] | None = None  # (height, width) of all images, if they have one size

    def num_examples(self, split: str) -> int:
        """The number of examples in the split."""
        ...

    def describe(self, split: str, i: int) -> str:
        """The example as errors name it, such as the paths of its files."""
        return f"example {i} of split '{split}' of {self.name}"

    def read(self, split: str, i: int, channels: int) -> DensePair:
        """The example as it is stored, with 1 or 3 `channels`. It is not checked. Raises DataError."""
        ...

    def load(self, split: str, i: int, channels: int) -> DensePair:
        """The example `i` of the split, with 1 or 3 `channels`.

        Raises DataError, one line that names the example, if it cannot be read, if the sizes of image and
        labels differ, if a label is no class, or if no pixel has a label.
        """
        pair = self.read(split, i, channels)
        if problem := _problem(pair, self.kind, len(self.class_names), self.first_label):
            raise DataError(f"{self.describe(split, i)}: {problem}")
        return pair


def _problem(pair: DensePair, kind: str, num_classes: int, first: int) -> str | None:
    """What is wrong with the labels of an example; None if nothing is."""
    image_HxWxC, label_HxW = pair
    if label_HxW.shape != image_HxWxC.shape[:2]:
        of_labels, of_image = (" x ".join(map(str, x)) for x in (label_HxW.shape, image_HxWxC.shape[:2]))
        return f"the labels are {of_labels} pixels and the image is {of_image}: they must be of one size"
    if kind == DEPTH:
        if not np.isfinite(label_HxW).all() or label_HxW.min() < 0:
            return "a depth is negative or not finite: depths are metres, and 0 where they are not known"
        return None if label_HxW.any() else "the depth of every pixel is 0, so none is known: leave it out"
    is_valid_HxW = label_HxW != IGNORED
    if not is_valid_HxW.any():
        return "every pixel is ignored, so there is no label: leave it out"
    valid = label_HxW[is_valid_HxW]
    if valid.min() < 0 or valid.max() >= num_classes:
        wrong = int(valid.max()) if valid.max() >= num_classes else int(valid.min())
        return f"the label {wrong + first} is no class: those are {first} to {first + num_classes - 1}"
    return None


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raises DataError if the data set `name` has no such split."""
    if split not in splits:
        raise DataError(f"{name} has no split '{split}': {nearest(split, splits)}")
