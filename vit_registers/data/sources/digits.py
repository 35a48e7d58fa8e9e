"""The digits as arrays, with the split that the project fixes. No TensorFlow."""

import numpy as np
from sklearn.datasets import load_digits

SPLITS = ("train", "test")
CLASS_NAMES = tuple("0123456789")


def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """(image_NxHxWxC, label_N) of a split: uint8 of 8 x 8 x 1, and int32; 1438 for train, 359 for test.

    The values 0..16 of scikit-learn's load_digits are scaled to 0..255 by round(v * 255 / 16). Every
    fifth example, index % 5 == 4, is for the test. The original order is kept.
    """
    assert split in SPLITS, split
    digits = load_digits()
    image_NxHxWxC = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    is_test_N = np.arange(len(digits.target)) % 5 == 4
    chosen_N = is_test_N if split == "test" else ~is_test_N
    return image_NxHxWxC[chosen_N], digits.target[chosen_N].astype(np.int32)
