"""Whole splits as arrays in host memory, decoded by PIL. No TensorFlow."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vit_registers.config import Config, nearest
from vit_registers.data import pil_decoding
from vit_registers.data.broken import BrokenImages
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources import digits
from vit_registers.data.sources.folder import FOLDERS, Folder, open_folder
from vit_registers.errors import DataError


class Images(NamedTuple):
    """A split in memory, N examples; mask_N is False for images that could not be decoded, which are zero."""

    image_NxHxWxC: np.ndarray  # uint8
    label_N: np.ndarray  # int32
    mask_N: np.ndarray  # bool


class Split(NamedTuple):
    """A split whose images are not read yet.

    `read(i, channels)` decodes image i to uint8 HxWxC, and raises OSError or BrokenImageError; `describe(i)`
    names it in errors.
    """

    name: str
    read: Callable[[int, int], np.ndarray]
    label_N: np.ndarray
    describe: Callable[[int], str]


class DigitsSource:
    """The embedded digits, straight from scikit-learn."""

    class_names = digits.CLASS_NAMES

    def num_examples(self, split: str) -> int:
        """How many images the split has. Raises DataError for an unknown split."""
        return len(self.open(split).label_N)

    def open(self, split: str) -> Split:
        """The split. Raises DataError for an unknown one."""
        if split not in digits.SPLITS:
            raise DataError(f"digits has no split '{split}': {nearest(split, digits.SPLITS)}")
        image_NxHxWxC, label_N = digits.load_split(split)
        return Split(
            split,
            lambda i, channels: np.repeat(image_NxHxWxC[i], channels, axis=-1),
            label_N,
            lambda i: f"record {i} of split '{split}' of digits",
        )


class FolderSource:
    """An image folder, see folder.py."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.class_names = folder.class_names

    def num_examples(self, split: str) -> int:
        """How many images the split has; errors as in Folder.files."""
        return self._folder.num_examples(split)

    def open(self, split: str) -> Split:
        """The split; errors as in Folder.files."""
        _, label_N = self._folder.files(split)
        return Split(
            split,
            lambda i, channels: pil_decoding.decode(
                Path(self._folder.path(split, i)).read_bytes(), channels=channels
            ),
            label_N,
            lambda i: self._folder.describe(split, i),
        )


class TfdsSource:
    """A data set that TFDS prepared as array_record, see tfds_source.py."""

    def __init__(self, config: Config) -> None:
        # TFDS takes a second to import, and digits and folders do without it
        from vit_registers.data.sources.tfds_prepared import open_tfds

        self._data = open_tfds(config)
        if not self._data.is_random_access:
            raise DataError(
                f"data.name='{config.data.name}' is prepared as TFRecord files, which data.loader='memory' "
                "cannot read: prepare it with vit_registers.prepare, or set data.loader='tfdata'"
            )
        if self._data.has_several_labels:
            raise DataError(
                f"data.name='{config.data.name}' has several labels for an image: set data.loader='tfdata'"
            )
        self.class_names = self._data.class_names

    def num_examples(self, split: str) -> int:
        """How many records the split has. Raises DataError for an unknown split."""
        return self._data.num_examples(split)

    def open(self, split: str) -> Split:
        """The split. Raises DataError for an unknown one."""
        read = self._data.reader(split)
        label_N = np.array([read(i)[1] for i in range(self._data.num_examples(split))], np.int32)
        return Split(
            split,
            lambda i, channels: pil_decoding.decode(read(i)[0], channels=channels),
            label_N,
            lambda i: self._data.describe(split, i),
        )


Source = DigitsSource | FolderSource | TfdsSource


def open_source(config: Config, broken: BrokenImages) -> Source:
    """The data set data.name. Raises DataError or ConfigError when there is none.

    Images that a folder lacks are reported to `broken`.
    """
    if config.data.name == "digits":
        return DigitsSource()
    if config.data.name in FOLDERS:
        return FolderSource(open_folder(config, broken))
    return TfdsSource(config)


def load(
    split: Split, target: Target, broken: BrokenImages, *, is_resized: bool, is_cropped: bool, setting: str
) -> Images:
    """All images of the split, resized to the target by PIL's bilinear filter if `is_resized`.

    If they are cropped later they have any size, the same for all; else the target's. Raises DataError for
    an image that is of another size, `setting` being what to change, and for one that cannot be read or
    decoded if data.on_broken says so.
    """
    number = len(split.label_N)
    size = None if is_cropped and not is_resized else (target.height, target.width)
    image_N: list[np.ndarray | None] = []
    for i in range(number):
        image_HxWxC = _read(split, i, target.channels, broken)
        image_N.append(image_HxWxC)
        if image_HxWxC is None:
            continue
        if is_resized:
            image_HxWxC = image_N[-1] = _resize(image_HxWxC, target)
        found = image_HxWxC.shape[:2]
        size = size or found
        if found != size:
            raise DataError(
                f"{split.describe(i)} is {found[0]} x {found[1]}, "
                f"not {size[0]} x {size[1]}: begin {setting} with 'resize'"
            )
    height, width = size or (target.height, target.width)
    images = Images(
        np.zeros((number, height, width, target.channels), np.uint8),
        split.label_N,
        np.array([image is not None for image in image_N], bool),
    )
    for i, image_HxWxC in enumerate(image_N):
        if image_HxWxC is not None:
            images.image_NxHxWxC[i] = image_HxWxC
    return images


def _read(split: Split, i: int, channels: int, broken: BrokenImages) -> np.ndarray | None:
    """The image, or None for one that was reported as broken."""
    try:
        return split.read(i, channels)
    except OSError as error:
        broken.report_unread(split.describe(i), error.strerror or str(error), split=split.name)
    except pil_decoding.BrokenImageError as error:
        broken.report(split.describe(i), str(error))
    return None


def _resize(image_HxWxC: np.ndarray, target: Target) -> np.ndarray:
    image = Image.fromarray(image_HxWxC[..., 0] if target.channels == 1 else image_HxWxC)
    image = image.resize((target.width, target.height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(target)
