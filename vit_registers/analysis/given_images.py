"""The images that flags name: folders of images, image folders with splits, TFDS data sets, boxes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vit_registers.config import Data
from vit_registers.data.loaders import Loader
from vit_registers.data.selection import is_image_folder, name_and_split
from vit_registers.data.sources import boxes
from vit_registers.data.sources.boxes import BoxImage
from vit_registers.data.sources.catalog import SOURCES
from vit_registers.data.sources.folder import ALL
from vit_registers.errors import ConfigError, DataError

_BATCH = 64  # images at a time, unless the user says otherwise


def shown(settings: Data, given: str | None, overrides: Mapping[str, Any], *, flag: str = "--data") -> Data:
    """The settings with the images that `flag` names, in batches of _BATCH or more; None: those of the run.

    `given` is a folder of images, FOLDER:SPLIT with the layout FOLDER/SPLIT/CLASS/*, or NAME:SPLIT of TFDS.
    Raises ConfigError for what is none of these.
    """
    if given is not None:
        settings = _with_images(settings, given, flag)
    if "data.eval_batch_size" not in overrides:
        devices = jax.device_count()
        settings = dataclasses.replace(settings, eval_batch_size=math.ceil(_BATCH / devices) * devices)
    return settings


def _with_images(settings: Data, given: str, flag: str) -> Data:
    name, split = name_and_split(given)
    whole, folder = Path(given).expanduser(), Path(name).expanduser()
    if whole.is_dir():
        return _of_folder(settings, "images", whole, ALL)
    if not split:
        raise ConfigError(f"{flag}={given}: there is no such folder; give a folder of images, or NAME:SPLIT")
    # A name of TFDS may be that of a folder in the working folder.
    is_meant = "/" in name or (folder / split).is_dir()
    if name not in SOURCES and is_meant and is_image_folder(name):
        return _of_folder(settings, "folder", folder, split)
    return dataclasses.replace(settings, name=name, eval_split=split)


def _of_folder(settings: Data, name: str, folder: Path, split: str) -> Data:
    return dataclasses.replace(
        settings,
        name=name,
        data_dir=str(folder.resolve()),
        train_split=split,
        eval_split=split,
        also_eval=(),
        eval_ops=settings.eval_ops if "resize" in settings.eval_ops else "resize",
        image_key=None,
        label_key=None,
    )


def check_apart(test: Data, train: Data, loader: Loader, given: str) -> None:
    """Raises ConfigError if images of `test` are among those of `train`, which --train_data=`given` names.

    Compares names of data sets, parts of splits, and folders, not images. `loader` is that of `train`.
    """
    same = f"--train_data={given} has images of --data: probes must be tested on other images"
    if test.name == train.name == "images":
        folders = [Path(data.data_dir or "") for data in (test, train)]
        if folders[0].is_relative_to(folders[1]) or folders[1].is_relative_to(folders[0]):
            raise ConfigError(f"{same}: give a folder that is not inside the other")
    elif (test.name, test.data_dir) == (train.name, train.data_dir):
        if test.eval_split == train.eval_split:
            raise ConfigError(f"{same}: give another split")
        if train.name not in SOURCES or (train.name == "digits" and train.loader == "tfdata"):
            try:
                loader.num_examples(f"{test.eval_split}+{train.eval_split}")  # which may not overlap
            except DataError as error:
                raise ConfigError(f"{same}: {error}") from None


def open_boxes(given: str) -> Sequence[BoxImage]:
    """Images with boxes: a folder of PASCAL VOC, DIR or DIR:SPLIT, or NAME:SPLIT of TFDS."""
    where, split = name_and_split(given)
    folder = Path(where).expanduser()
    if folder.is_dir() and not (folder / "dataset_info.json").exists():  # which TFDS writes
        return boxes.open_voc(folder, split=split or None)
    if not split:
        raise ConfigError(
            f"--boxes={given}: there is no such folder; give a folder of PASCAL VOC, or NAME:SPLIT"
        )
    return boxes.open_tfds_boxes(where, split)
