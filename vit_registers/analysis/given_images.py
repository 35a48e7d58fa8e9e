"""The images that flags name: folders of images, image folders with splits, TFDS data sets, boxes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from vit_registers.config import Data
from vit_registers.data.selection import name_and_split
from vit_registers.data.sources import boxes
from vit_registers.data.sources.boxes import BoxImage
from vit_registers.errors import ConfigError

_BATCH = 64  # images at a time, unless the user says otherwise


def shown(settings: Data, data: str | None, overrides: Mapping[str, Any]) -> Data:
    """The settings with the images that --data= selects, in batches of _BATCH or more."""
    if data is not None:
        name, split = name_and_split(data)
        if Path(data).expanduser().is_dir():
            resized = settings.eval_ops if "resize" in settings.eval_ops else "resize"
            folder = str(Path(data).expanduser().resolve())
            settings = dataclasses.replace(
                settings,
                name="images",
                data_dir=folder,
                eval_split="all",
                eval_ops=resized,
                image_key=None,
                label_key=None,
            )
        elif not split:
            raise ConfigError(
                f"--data={data}: there is no such folder; give a folder of images, or NAME:SPLIT"
            )
        else:
            settings = dataclasses.replace(settings, name=name, eval_split=split)
    if "data.eval_batch_size" not in overrides:
        devices = jax.device_count()
        settings = dataclasses.replace(settings, eval_batch_size=math.ceil(_BATCH / devices) * devices)
    return settings


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
