"""Handwritten digits of 8 x 8 pixels from scikit-learn, which need no download. No TensorFlow."""

import functools
import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_registers.config import Data, nearest
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources.base import DataSource, check_feature_keys
from vit_registers.errors import DataError

SPLITS = ("train", "test")
CLASS_NAMES = tuple("0123456789")
_FILE = "datasets/data/digits.csv.gz"  # in scikit-learn: a line for each image, 64 values and the class


@functools.cache
def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(image_NxHxWxC, label_N) of a split: uint8 of 8 x 8 x 1, and int32; 1438 for train, 359 for test.

    The values 0..16 of scikit-learn's load_digits are scaled to 0..255 by round(v * 255 / 16). Every fifth
    example (index % 5 == 4) belongs to the test split. The original order is kept. The arrays are read-only.
    Raises DataError for another split.
    """
    if split not in SPLITS:
        raise DataError(f"digits has no split '{split}': {nearest(split, SPLITS)}")
    values_Nx65 = _read_digits()
    image_NxHxWxC = np.round(values_Nx65[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    is_test_N = np.arange(len(values_Nx65)) % 5 == 4
    chosen_N = is_test_N if split == "test" else ~is_test_N
    image_NxHxWxC, label_N = image_NxHxWxC[chosen_N], values_Nx65[chosen_N, -1].astype(np.int32)
    image_NxHxWxC.setflags(write=False)
    label_N.setflags(write=False)
    return image_NxHxWxC, label_N


def _read_digits() -> np.ndarray:
    """What load_digits reads. scikit-learn is not imported, which takes a second."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits requires scikit-learn, which is not installed")
    path = Path(found.origin).parent / _FILE
    try:
        with gzip.open(path, "rt") as file:
            return np.loadtxt(file, delimiter=",")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


class DigitsSource(DataSource):
    """The digits as scikit-learn holds them."""

    name = "digits"
    class_names = CLASS_NAMES

    def num_examples(self, split: str) -> int:
        return len(self.labels(split))

    def labels(self, split: str) -> np.ndarray:
        return load_split(split)[1]

    def image_reader(self, split: str) -> Callable[[int], bytes]:
        """A function record -> image as PGM, which is a header and the pixels."""
        image_NxHxWxC, _ = load_split(split)
        height, width, _ = image_NxHxWxC.shape[1:]
        header = f"P5 {width} {height} 255\n".encode()
        return lambda record: header + image_NxHxWxC[record].tobytes()


def open_digits(data: Data, channels: int, broken: BrokenImages) -> DataSource:
    """The digits: straight from scikit-learn, or for data.loader='tfdata' as a data set of TFDS.

    The latter also has parts of splits, such as 'train[:10%]'. It is prepared in data.data_dir on first use.
    """
    if data.loader != "tfdata":
        check_feature_keys(data, image_key="image", label_key="label")
        return DigitsSource()
    from vit_registers.data.sources.tfds_prepared import open_prepared

    return open_prepared(data, channels)
