"""Folders of images with depth as 16-bit PNG: NYU Depth v2, KITTI, and any other. No JAX, no TensorFlow."""

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vit_registers.data import pil_decoding
from vit_registers.data.sources import listing
from vit_registers.data.sources.dense import DEPTH, DensePair, DenseSource, check_split
from vit_registers.data.sources.listing import LeftOut, printable
from vit_registers.errors import DataError

NYU_LISTS = {"train": "nyu_train.txt", "test": "nyu_test.txt"}
KITTI_LISTS = {"train": "kitti_eigen_train.txt", "test": "kitti_eigen_test.txt"}
_NO_DEPTH = "None"  # the depth of images without one, in the lists of KITTI
_KB_CROP = (352, 1216)  # px: the part of KITTI's images with depth, at the bottom, centred
_logger = logging.getLogger(__name__)


class Form(NamedTuple):
    """How the files of a data set are stored."""

    protocol: str
    images: str  # the folder of images, and of depths, in that of the data set
    depths: str
    units_per_m: float  # of the numbers in the depth files
    window: tuple[int, int] | None  # height and width of the part that is read, at the bottom, centred


_NYU = Form("nyu", "", "", 1000.0, None)
_KITTI = Form("kitti", "input", "gt_depth", 256.0, _KB_CROP)
_FOLDER = Form("folder", "images", "depth", 1000.0, None)


class DepthFiles(DenseSource):
    """Pairs of files, an image and a depth, in the folder `root`."""

    kind, class_names = DEPTH, ()

    def __init__(
        self, root: Path, form: Form, splits: Mapping[str, Callable[[], list[tuple[str, str]]]]
    ) -> None:
        """`splits` are functions that list the pairs of a split, as paths in the folders of the form."""
        self.name, self.protocol = str(root), form.protocol
        self._root, self._form, self._splits = root, form, splits
        self._pairs: dict[str, list[tuple[str, str]]] = {}

    def num_examples(self, split: str) -> int:
        return len(self._files(split))

    def describe(self, split: str, i: int) -> str:
        return " and ".join(printable(str(path)) for path in self._paths(split, i))

    def read(self, split: str, i: int, channels: int) -> DensePair:
        image_path, depth_path = self._paths(split, i)
        image_HxWxC = _read_image(image_path, channels)
        depth_HxW = _read_depth(depth_path, units_per_m=self._form.units_per_m)
        if self._form.window is None or image_HxWxC.shape[:2] != depth_HxW.shape:
            return DensePair(image_HxWxC, depth_HxW)
        window = _bottom_window(depth_HxW.shape, self._form.window, where=image_path)
        return DensePair(image_HxWxC[window], depth_HxW[window])

    def _files(self, split: str) -> list[tuple[str, str]]:
        if split not in self._pairs:
            check_split(self.name, split, [*self._splits])
            self._pairs[split] = self._splits[split]()
        return self._pairs[split]

    def _paths(self, split: str, i: int) -> tuple[Path, Path]:
        image, depth = self._files(split)[i]
        return self._root / self._form.images / image, self._root / self._form.depths / depth


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise DataError(
            f"{printable(str(path))} cannot be read: {getattr(error, 'strerror', error)}"
        ) from None


def _read_image(path: Path, channels: int) -> np.ndarray:
    try:
        return pil_decoding.decode_image(_read_bytes(path), channels=channels)
    except pil_decoding.BrokenImageError as error:
        reason = f": {error}" if str(error) else ""
        raise DataError(f"{printable(str(path))} cannot be decoded as an image{reason}") from None


def _read_depth(path: Path, *, units_per_m: float) -> np.ndarray:
    """depth_HxW of a 16-bit PNG, float32 metres, 0 where the file has 0. Raises DataError for other files."""
    data, what = _read_bytes(path), printable(str(path))
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            mode, raw_HxW = image.mode, np.asarray(image)
    except Exception:  # PIL raises many types for damaged bytes
        raise DataError(f"{what} cannot be decoded as a PNG of depths") from None
    if mode != "I" and not mode.startswith("I;16"):
        raise DataError(
            f"{what} has pixels of mode {mode}: depths must be a grey PNG of 16 bits, {units_per_m:g} a metre"
        )
    return raw_HxW.astype(np.float32) / np.float32(units_per_m)


def _bottom_window(shape: tuple[int, ...], window: tuple[int, int], *, where: Path) -> tuple[slice, slice]:
    """The pixels of a window at the bottom, centred."""
    top, left = shape[0] - window[0], (shape[1] - window[1]) // 2
    if top < 0 or left < 0:
        raise DataError(
            f"{printable(str(where))} has {shape[0]} x {shape[1]} pixels: images of KITTI have at least "
            f"{window[0]} x {window[1]}"
        )
    return slice(top, top + window[0]), slice(left, left + window[1])


def _listed(path: Path) -> list[tuple[str, str]]:
    """The pairs of a list with lines 'IMAGE DEPTH [FOCAL]', without those whose depth is None."""
    try:
        lines = _read_bytes(path).decode().splitlines()
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not text: lines must be 'IMAGE DEPTH' with optional focal length"
        ) from None
    pairs, num_without = [], 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (2, 3):
            raise DataError(f"{path}, line {number}, is {line[:80]!r}: must be 'IMAGE DEPTH [FOCAL]'")
        if words[1] == _NO_DEPTH:
            num_without += 1
            continue
        pairs.append((words[0].lstrip("/"), words[1].lstrip("/")))
    if num_without:
        _logger.warning("%s: left out %d images whose depth is None", path, num_without)
    if not pairs:
        raise DataError(f"{path} lists no image with a depth: lines must be 'IMAGE DEPTH [FOCAL]'")
    return pairs


def _open_lists(root: Path, form: Form, lists: Mapping[str, str]) -> DepthFiles:
    def opener(name: str) -> Callable[[], list[tuple[str, str]]]:
        return lambda: _listed(root / name)

    return DepthFiles(root, form, {split: opener(name) for split, name in lists.items()})


def open_nyu(root: Path) -> DepthFiles:
    """NYU Depth v2 with the lists nyu_train.txt and nyu_test.txt of the Eigen split, in millimetres.

    A split whose list is missing cannot be read.
    """
    return _open_lists(root, _NYU, NYU_LISTS)


def open_kitti(root: Path) -> DepthFiles:
    """KITTI with the lists kitti_eigen_train.txt and kitti_eigen_test.txt, in 1/256 m.

    Images are in root/input and depths in root/gt_depth. The lower centred 352 x 1216 pixels are read.
    """
    return _open_lists(root, _KITTI, KITTI_LISTS)


def is_depth_folder(root: Path) -> bool:
    """Whether the folder has the folders `images` and `depth`."""
    return (root / _FOLDER.images).is_dir() and (root / _FOLDER.depths).is_dir()


def open_depth_folder(root: Path) -> DepthFiles:
    """Images in root/images/SPLIT and depths of the same names in root/depth/SPLIT, PNG in millimetres."""

    def opener(split: str) -> Callable[[], list[tuple[str, str]]]:
        return lambda: _same_names(root, split)

    found = sorted(path.name for path in (root / _FOLDER.images).iterdir() if path.is_dir())
    return DepthFiles(root, _FOLDER, {split: opener(split) for split in found})


def _same_names(root: Path, split: str) -> list[tuple[str, str]]:
    left_out, above = LeftOut(), listing.ids_above(root)
    images = sorted(listing.list_branch(root / _FOLDER.images, split, above, left_out).images)
    if left_out:
        _logger.warning("%s: left out %s", root / _FOLDER.images / split, left_out)
    if not images:
        raise DataError(f"{root / _FOLDER.images / split} has no images ({listing.SUFFIXES_TEXT})")
    pairs = [(image, str(Path(image).with_suffix(".png"))) for image in images]
    for image, depth in pairs:
        if not (root / _FOLDER.depths / depth).is_file():
            where = printable(str(root / _FOLDER.depths / depth))
            raise DataError(f"{printable(image)} in {root / _FOLDER.images} has no depth: {where} is missing")
    return pairs
