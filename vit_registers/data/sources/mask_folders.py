"""Folders of images and masks: ADE20k, PASCAL VOC 2012, and any images with PNG files of class numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vit_registers.data.pil_decoding import BrokenImageError, decode_image
from vit_registers.data.sources.dense import CLASSES, IGNORED, DensePair, DenseSource, check_split
from vit_registers.data.sources.listing import SUFFIXES, SUFFIXES_TEXT, LeftOut, printable, scan
from vit_registers.errors import DataError

_MASK_MODES = ("1", "L", "P", "I;16", "I")  # of PIL: numbers, or numbers of a palette
_ADE_CLASSES, _ADE_NAMES = 150, "objectInfo150.txt"
_VOC_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_CLASSES_FILE = "classes.txt"

Pair = tuple[Path, Path]  # an image, and its mask


class MaskFolder(DenseSource):
    """Images in files, with a mask each: a file with a number for each pixel, of which class 0 has the first.

    `list_pairs(split)` returns the files of a split, in order. Masks have no other numbers than those of
    classes and `ignored`.
    """

    kind = CLASSES

    def __init__(
        self,
        name: str,
        protocol: str,
        class_names: Sequence[str],
        *,
        splits: Sequence[str],
        list_pairs: Callable[[str], Sequence[Pair]],
        first: int = 0,
        ignored: int = IGNORED,
    ) -> None:
        self.name, self.protocol, self.class_names = name, protocol, tuple(class_names)
        self.first_label = first
        self._ignored, self._splits, self._list_pairs = ignored, splits, list_pairs
        self._pairs: dict[str, Sequence[Pair]] = {}

    def num_examples(self, split: str) -> int:
        return len(self._files(split))

    def describe(self, split: str, i: int) -> str:
        return printable(str(self._files(split)[i][1]))

    def read(self, split: str, i: int, channels: int) -> DensePair:
        image, mask = self._files(split)[i]
        number_HxW = read_mask(mask)
        label_HxW = np.where(number_HxW == self._ignored, IGNORED, number_HxW - self.first_label)
        if self._ignored != IGNORED:  # then this number is that of no class
            label_HxW = np.where(number_HxW - self.first_label == IGNORED, IGNORED + 1, label_HxW)
        return DensePair(read_pair_image(image, channels), label_HxW)

    def _files(self, split: str) -> Sequence[Pair]:
        check_split(self.name, split, self._splits)
        if split not in self._pairs:
            self._pairs[split] = self._list_pairs(split)
            if not self._pairs[split]:
                raise DataError(f"split '{split}' of {self.name} has no images ({SUFFIXES_TEXT})")
        return self._pairs[split]


def read_pair_image(path: Path, channels: int) -> np.ndarray:
    """The image in a file, uint8 HxWxC. Raises DataError, which names the file."""
    try:
        return decode_image(path.read_bytes(), channels=channels)
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None
    except BrokenImageError as error:
        raise DataError(f"{printable(str(path))} is no image that can be decoded{_reason(error)}") from None


def read_mask(path: Path) -> np.ndarray:
    """The numbers of a mask, int32 HxW: grey levels, or indices of a palette. Raises DataError."""
    try:
        with path.open("rb") as file:
            return decode_mask(file, printable(str(path)))
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None


def decode_mask(file: object, where: str) -> np.ndarray:
    """The numbers of a mask, int32 HxW, in an open file, which errors call `where`. Raises DataError."""
    try:
        with Image.open(file, formats=("PNG", "BMP", "TIFF", "PPM")) as image:  # pyright: ignore
            mode, number_HxW = image.mode, np.asarray(image)
    except Exception:  # PIL raises many types for damaged bytes
        raise DataError(f"{where} is no mask that can be decoded: it must be a PNG file") from None
    if mode not in _MASK_MODES:
        raise DataError(
            f"{where} has colors (mode {mode}), but masks have a number for each pixel: store them as grey "
            "or palette PNG"
        )
    return number_HxW.astype(np.int32)


def _reason(error: BrokenImageError) -> str:
    return f": {error}" if str(error) else ""


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    return {Path(name).stem: folder / name for name in scan(folder, LeftOut(), suffixes).images}


def pair_by_stem(images: Path, masks: Path) -> list[Pair]:
    """Each image in a folder with the PNG of the same stem in another. Raises DataError if one is missing."""
    found, masks_of = _by_stem(images, SUFFIXES), _by_stem(masks, (".png",))
    if missing := [path for stem, path in found.items() if stem not in masks_of]:
        raise DataError(
            f"{printable(str(masks))} lacks the masks of {len(missing)} of {len(found)} images, such as "
            f"{printable(missing[0].stem)}.png of {printable(str(missing[0]))}"
        )
    return [(path, masks_of[stem]) for stem, path in found.items()]


def _splits_of(*folders: Path) -> list[str]:
    """The folders that all of `folders` have."""
    each = [scan(folder, LeftOut()) for folder in folders]
    return sorted(set.intersection(*({*entries.folders, *entries.linked_folders} for entries in each)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f"{printable(str(path))} cannot be read: {reason}") from None


def is_ade20k(folder: Path) -> bool:
    """Whether the folder has the layout of ADEChallengeData2016."""
    return (folder / "images" / "training").is_dir() and (folder / "annotations" / "training").is_dir()


def open_ade20k(folder: Path) -> DenseSource:
    """The scene parsing benchmark of ADE20k: 150 classes, in masks from 1 on; 0 is ignored."""
    return MaskFolder(
        "ade20k",
        "ade20k",
        _ade_names(folder / _ADE_NAMES),
        splits=_splits_of(folder / "images", folder / "annotations"),
        list_pairs=lambda split: pair_by_stem(folder / "images" / split, folder / "annotations" / split),
        first=1,
        ignored=0,
    )


def _ade_names(path: Path) -> list[str]:
    """The first name of each class in the table that the data set comes with; else its number."""
    numbered = [f"class {i + 1}" for i in range(_ADE_CLASSES)]
    if not path.is_file():
        return numbered
    rows = [line.split("\t") for line in _lines(path)[1:] if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows]
    return names if len(names) == _ADE_CLASSES else numbered


def voc_root(folder: Path) -> Path | None:
    """The folder VOC2012 in, or at, `folder`; None if there is none."""
    for root in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"):
        if (root / "SegmentationClass").is_dir() and (root / "ImageSets" / "Segmentation").is_dir():
            return root
    return None


def open_voc_masks(folder: Path) -> DenseSource:
    """PASCAL VOC 2012: 21 classes with background; the borders of objects, 255, are ignored."""
    root = voc_root(folder)
    assert root is not None
    lists = root / "ImageSets" / "Segmentation"

    def pairs(split: str) -> list[Pair]:
        stems = [line.strip() for line in _lines(lists / f"{split}.txt") if line.strip()]
        return [(root / "JPEGImages" / f"{x}.jpg", root / "SegmentationClass" / f"{x}.png") for x in stems]

    splits = sorted(_by_stem(lists, (".txt",)))
    return MaskFolder("voc2012", "voc2012", _VOC_NAMES, splits=splits, list_pairs=pairs)


def is_mask_folder(folder: Path) -> bool:
    """Whether the folder has images/ and masks/."""
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def open_mask_folder(folder: Path) -> DenseSource:
    """Any images, images/SPLIT/*, with masks/SPLIT/*.png of class numbers from 0 on; 255 is ignored.

    classes.txt has the name of a class in each line. Without it, there are as many classes as the largest
    number in all masks, which are read for it.
    """
    splits = _splits_of(folder / "images", folder / "masks")

    def pairs(split: str) -> list[Pair]:
        return pair_by_stem(folder / "images" / split, folder / "masks" / split)

    if (folder / _CLASSES_FILE).is_file():
        names = [line.strip() for line in _lines(folder / _CLASSES_FILE) if line.strip()]
    else:
        names = _counted_names({split: pairs(split) for split in splits})
    if not names:
        raise DataError(f"{printable(str(folder))} has no classes: list them in {_CLASSES_FILE}, one a line")
    name = printable(str(folder))
    return MaskFolder(name, "folder", names, splits=splits, list_pairs=pairs)


def _counted_names(pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    largest = -1
    for _, mask in (pair for files in pairs.values() for pair in files):
        number_HxW = read_mask(mask)
        largest = max(largest, int(number_HxW[number_HxW != IGNORED].max(initial=-1)))
    return [str(i) for i in range(largest + 1)]
