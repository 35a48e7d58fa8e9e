"""Whole splits as arrays in host memory, decoded by PIL. No TensorFlow."""

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from vit_registers.config import Config, nearest
from vit_registers.data.broken import BrokenImages
from vit_registers.data.digits import arrays
from vit_registers.data.folder import FOLDERS, Folder, open_folder
from vit_registers.data.op_strings import Target
from vit_registers.errors import DataError


class Images(NamedTuple):
    """A split in memory, N examples; mask_N is False for images that could not be decoded, which are zero."""

    image_NxHxWxC: np.ndarray  # uint8
    label_N: np.ndarray  # int32
    mask_N: np.ndarray  # bool


class Split(NamedTuple):
    """A split whose images are not read yet: `read(i)` opens image i, `describe(i)` names it in errors."""

    read: Callable[[int], Image.Image]
    label_N: np.ndarray
    describe: Callable[[int], str]


class DigitsSource:
    """The embedded digits, straight from scikit-learn."""

    class_names = arrays.CLASS_NAMES

    def num_examples(self, split: str) -> int:
        """How many images the split has. Raises DataError for an unknown split."""
        return len(self.open(split).label_N)

    def open(self, split: str) -> Split:
        """The split. Raises DataError for an unknown one."""
        if split not in arrays.SPLITS:
            raise DataError(f"digits has no split '{split}': {nearest(split, arrays.SPLITS)}")
        image_NxHxWxC, label_N = arrays.load_split(split)
        return Split(
            lambda i: Image.fromarray(image_NxHxWxC[i, :, :, 0]),
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
        files, label_N = self._folder.files(split)
        return Split(lambda i: Image.open(self._folder.root / files[i]), label_N, lambda i: files[i])


class TfdsSource:
    """A data set that TFDS prepared as array_record, see tfds_source.py."""

    def __init__(self, config: Config) -> None:
        # TFDS takes a second to import, and digits and folders do without it
        from vit_registers.data.tfds_source import open_tfds

        self._data = open_tfds(config)
        if not self._data.is_random_access:
            raise DataError(
                f"data.name='{config.data.name}' is prepared as TFRecord files, which data.loader='memory' "
                "cannot read: prepare it with tools.prepare_data, or set data.loader='tfdata'"
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
            lambda i: Image.open(io.BytesIO(read(i)[0])),
            label_N,
            lambda i: self._data.describe(split, i),
        )


Source = DigitsSource | FolderSource | TfdsSource


def open_source(config: Config) -> Source:
    """The data set data.name. Raises DataError or ConfigError when there is none."""
    if config.data.name == "digits":
        return DigitsSource()
    if config.data.name in FOLDERS:
        return FolderSource(open_folder(config))
    return TfdsSource(config)


def load(
    split: Split, target: Target, broken: BrokenImages, *, is_resized: bool, is_cropped: bool, setting: str
) -> Images:
    """All images of the split, resized to the target by PIL's bilinear filter if `is_resized`.

    If they are cropped later they have any size, the same for all; else the target's. Raises DataError for
    an image that is of another size, `setting` being what to change, and for one that cannot be decoded if
    data.on_broken says so.
    """
    number, mode = len(split.label_N), "L" if target.channels == 1 else "RGB"
    size = None if is_cropped and not is_resized else (target.height, target.width)
    image_N: list[np.ndarray | None] = []
    for i in range(number):
        try:
            with split.read(i) as image:
                image = image.convert(mode)
        # PIL raises SyntaxError and ValueError for some damaged files
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            broken.report(split.describe(i))
            image_N.append(None)
            continue
        if is_resized:
            image = image.resize((target.width, target.height), Image.Resampling.BILINEAR)
        size = size or (image.height, image.width)
        if (image.height, image.width) != size:
            raise DataError(
                f"{split.describe(i)} is {image.height} x {image.width}, "
                f"not {size[0]} x {size[1]}: begin {setting} with 'resize'"
            )
        image_N.append(np.asarray(image).reshape(*size, target.channels))
    height, width = size or (target.height, target.width)
    images = Images(
        np.zeros((number, height, width, target.channels), np.uint8),
        split.label_N,
        np.array([image is not None for image in image_N], bool),
    )
    for i, image in enumerate(image_N):
        if image is not None:
            images.image_NxHxWxC[i] = image
    return images
