"""The data sets with a label for each pixel, by name and by the layout of their folder. Add new ones here."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_registers.config import nearest
from vit_registers.data.sources import depth_folders
from vit_registers.data.sources.catalog import TFDS
from vit_registers.data.sources.dense import CLASSES, DEPTH, DenseSource
from vit_registers.data.sources.digit_scenes import DigitScenes
from vit_registers.data.sources.mask_folders import (
    is_ade20k,
    is_mask_folder,
    open_ade20k,
    open_mask_folder,
    open_voc_masks,
    voc_root,
)
from vit_registers.errors import DataError, require_extra
from vit_registers.storage import paths


class Layout(NamedTuple):
    """A form of folders, which is recognised by what the folder holds."""

    text: str  # the paths that such a folder has, as errors name it
    is_there: Callable[[Path], bool]
    open: Callable[[Path], DenseSource]


class DenseCatalog(NamedTuple):
    """The data sets with one kind of labels."""

    named: Mapping[str, Callable[[], DenseSource]]
    layouts: Sequence[Layout]  # the first that fits is taken


def _nyu_of_tfds(name_or_folder: str | Path) -> DenseSource:
    require_extra("data", *TFDS, what=f"{name_or_folder}, a data set of TFDS,")
    from vit_registers.data.sources.tfds_pairs import open_nyu_of_tfds  # TFDS takes a second to import

    return open_nyu_of_tfds(str(name_or_folder))


def _pets_of_tfds(name_or_folder: str | Path) -> DenseSource:
    require_extra("data", *TFDS, what=f"{name_or_folder}, a data set of TFDS,")
    from vit_registers.data.sources.tfds_pairs import open_pets

    return open_pets(str(name_or_folder))


def _is_prepared_by_tfds(folder: Path) -> bool:
    return any((*folder.glob("features.json"), *folder.glob("*/features.json")))


_DEPTH_LAYOUTS = (
    Layout(
        " and ".join(depth_folders.NYU_LISTS.values()) + " (NYU Depth v2)",
        lambda folder: any((folder / name).is_file() for name in depth_folders.NYU_LISTS.values()),
        depth_folders.open_nyu,
    ),
    Layout(
        " and ".join(depth_folders.KITTI_LISTS.values()) + " (KITTI)",
        lambda folder: any((folder / name).is_file() for name in depth_folders.KITTI_LISTS.values()),
        depth_folders.open_kitti,
    ),
    Layout(
        "images/SPLIT and depth/SPLIT with PNG in millimetres",
        depth_folders.is_depth_folder,
        depth_folders.open_depth_folder,
    ),
    Layout("a folder of nyu_depth_v2 that TFDS has prepared", _is_prepared_by_tfds, _nyu_of_tfds),
)


_PETS = "oxford_iiit_pet"
_CLASS_LAYOUTS = (
    Layout("images/training and annotations/training (ADE20k)", is_ade20k, open_ade20k),
    Layout(
        "JPEGImages, SegmentationClass and ImageSets/Segmentation (PASCAL VOC 2012)",
        lambda folder: voc_root(folder) is not None,
        open_voc_masks,
    ),
    Layout("images/SPLIT/* and masks/SPLIT/*.png of class numbers", is_mask_folder, open_mask_folder),
    Layout(f"a folder of {_PETS} that TFDS has prepared", _is_prepared_by_tfds, _pets_of_tfds),
)


CATALOG: dict[str, DenseCatalog] = {
    CLASSES: DenseCatalog(
        {
            "digit_scenes": functools.partial(DigitScenes, CLASSES),
            _PETS: functools.partial(_pets_of_tfds, _PETS),
        },
        _CLASS_LAYOUTS,
    ),
    DEPTH: DenseCatalog(
        {
            "digit_scenes": functools.partial(DigitScenes, DEPTH),
            "nyu_depth_v2": functools.partial(_nyu_of_tfds, "nyu_depth_v2"),
        },
        _DEPTH_LAYOUTS,
    ),
}


def open_dense(name_or_folder: str, kind: str) -> DenseSource:
    """The data set of a name, or in a folder, with labels of `kind`: CLASSES or DEPTH.

    Raises DataError for an unknown name, a folder that is not there, or one of another layout.
    """
    named, layouts = CATALOG[kind]
    if name_or_folder in named:
        return named[name_or_folder]()
    if paths.is_remote(name_or_folder):
        raise DataError(f"{name_or_folder}: labels of pixels are read from local disks only: copy the folder")
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        is_path = "/" in name_or_folder or name_or_folder.startswith((".", "~"))
        hint = "there is no such folder" if is_path else nearest(name_or_folder, named)
        raise DataError(
            f"data '{name_or_folder}' is neither a data set with {kind} of pixels nor a folder: {hint}"
        )
    for layout in layouts:
        if layout.is_there(folder):
            return layout.open(folder)
    texts = "; or ".join(layout.text for layout in layouts)
    raise DataError(f"{folder} has none of the layouts of data with {kind} of pixels: {texts}")
