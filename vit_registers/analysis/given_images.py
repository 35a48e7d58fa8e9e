"""The images that flags name: folders of images, image folders with splits, TFDS data sets, boxes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vit_registers.analysis.options import Options
from vit_registers.config import Captions, Data, check_section, lookup
from vit_registers.data.loaders import Loader
from vit_registers.data.selection import OF_THE_DATA, is_image_folder, name_and_split, require_split
from vit_registers.data.sources import boxes
from vit_registers.data.sources.boxes import BoxImage
from vit_registers.data.sources.catalog import SOURCES
from vit_registers.data.sources.folder import ALL
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.task import Splits
from vit_registers.evaluation.tasks import TASKS

if TYPE_CHECKING:
    from vit_registers.analysis.opening import OpenedModel

_BATCH = 64  # images at a time, unless the user says otherwise


def shown(settings: Data, given: str | None, overrides: Mapping[str, Any], *, flag: str = "--data") -> Data:
    """The settings with the images that `flag` names, in batches of _BATCH or more; None: those of the run.

    `given` is a folder of images, FOLDER:SPLIT with the layout FOLDER/SPLIT/CLASS/*, or NAME:SPLIT of TFDS.
    Raises ConfigError for what is none of these.
    """
    if given is not None:
        captions = settings.captions
        settings = _with_images(settings, given, flag)
        own = {key: getattr(captions, key) for key in OF_THE_DATA if f"data.captions.{key}" in overrides}
        settings = dataclasses.replace(settings, captions=dataclasses.replace(settings.captions, **own))
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
    if name != settings.name:
        settings = dataclasses.replace(settings, captions=_of_other_data(settings.captions))
    return dataclasses.replace(settings, name=name, eval_split=split)


def _of_other_data(captions: Captions) -> Captions:
    """The settings without what says how captions are stored, and what classes are called, in the data."""
    return dataclasses.replace(captions, **OF_THE_DATA)


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
        captions=_of_other_data(settings.captions),
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


def with_tasks(
    options: Options, tasks: Sequence[str], given: Sequence[str] | None, opened: "OpenedModel"
) -> Options:
    """The options with the tasks of --tasks, their settings, and the images to train and to test them on.

    These are --task_data, `given`, for tasks on labels of pixels, and --train_data and --data, with which
    `opened` was opened, for other tasks. Raises ConfigError if there are none.
    """
    dense = None
    if given is not None:
        if len(given) not in (1, 2):
            raise ConfigError(
                f"--task_data={','.join(given)}: must be TRAIN,TEST, or TEST alone without training"
            )
        dense = Splits(*(require_split(one, flag="--task_data") for one in (given[0], given[-1])))
    if not tasks:
        return dataclasses.replace(options, dense_images=dense)
    images = None
    for task in tasks:
        entry = lookup(TASKS, task, "--tasks")
        if entry.is_dense:
            if given is None or (len(given) != 2 and not entry.has_texts):
                raise ConfigError(
                    f"--tasks={task} requires images with a label for each pixel: give "
                    "--task_data=TRAIN,TEST, such as --task_data=digit_scenes:train,digit_scenes:test"
                )
        elif entry.has_texts:  # which read no training images
            test = _as_split(opened.config.data)
            images = images or Splits(test, test)
        elif opened.train is None:
            raise ConfigError(f"--tasks={task} requires --train_data=NAME:SPLIT, to train on")
        else:
            images = Splits(_as_split(opened.train.config.data), _as_split(opened.config.data))
    settings = opened.config.tasks
    check_section("tasks", settings)
    return dataclasses.replace(
        options, tasks=tuple(tasks), task_settings=settings, task_images=images, dense_images=dense
    )


def _as_split(data: Data) -> tuple[str, str]:
    """The images of analyze as those of a task: (name or folder, split)."""
    if data.name == "images":
        raise ConfigError(
            f"--tasks: {data.data_dir} has no splits: give FOLDER:SPLIT, with images at FOLDER/SPLIT/CLASS/"
        )
    return (data.data_dir or "" if data.name == "folder" else data.name), data.eval_split


def open_boxes(given: str) -> Sequence[BoxImage]:
    """Images with boxes: a folder of PASCAL VOC, DIR or DIR:SPLIT, or NAME:SPLIT of TFDS."""
    where, split = name_and_split(given)
    if "://" in where:
        raise ConfigError(f"--boxes={given} must be on this machine: copy the folder to a disk")
    folder = Path(where).expanduser()
    if folder.is_dir() and not (folder / "dataset_info.json").exists():  # which TFDS writes
        return boxes.open_voc(folder, split=split or None)
    if not split:
        raise ConfigError(
            f"--boxes={given}: there is no such folder; give a folder of PASCAL VOC, or NAME:SPLIT"
        )
    return boxes.open_tfds_boxes(where, split)
