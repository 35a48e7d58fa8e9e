"""The data set and the split that a text such as "cifar10:test" or "photos:val" selects. No TensorFlow."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_registers.config import Data
from vit_registers.errors import ConfigError

_ROOTS = (
    "folder",
    "images",
    "image_text",
)  # sources whose data_dir is the folder of the images, not that of TFDS
# What data.captions says of one data set alone, and its defaults.
OF_THE_DATA: Mapping[str, Any] = {"key": None, "class_texts": ()}
_TFDS_FILE = "dataset_info.json"


def name_and_split(given: str) -> tuple[str, str]:
    """NAME and SPLIT of NAME:SPLIT, as in mnist:test, mnist:3.0.1:train[:10], a/path:test or gs://a/path:test."""
    place = re.sub(r"\[.*?\]", lambda part: "_" * len(part.group()), given).rfind(":")
    if place < 0 or given[place:].startswith("://"):
        return given, ""
    return given[:place], given[place + 1 :]


def require_split(given: str, *, flag: str) -> tuple[str, str]:
    """The same. Raises ConfigError, which names the `flag`, if the name or the split is missing."""
    name, split = name_and_split(given)
    if not name.strip() or not split.strip():
        raise ConfigError(f"{flag}={given}: must be NAME:SPLIT or FOLDER:SPLIT, such as cifar10:test")
    return name.strip(), split.strip()


def is_image_folder(name: str) -> bool:
    """Whether `name` is an existing folder, and not one of a data set that TFDS prepared."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return False
    below = (folder, *(one for pattern in ("*", "*/*") for one in folder.glob(pattern)))
    return not any((one / _TFDS_FILE).is_file() for one in below if one.is_dir()) and not any(
        folder.glob("*.py")
    )


def select(data: Data, name: str, split: str) -> Data:
    """The settings with the evaluation split `split` of the data set `name`.

    `name` is a value of data.name, or an existing folder, which is read as data.name='folder' with its path
    as data.data_dir. Another data set than that of `data` has its keys and the names of its classes by
    default, and the data_dir of `data` if both are of TFDS.
    """
    if name == data.name:
        return dataclasses.replace(data, eval_split=split)
    if is_image_folder(name):
        name, data_dir = "folder", str(Path(name).expanduser())
    elif data.name in _ROOTS:
        data_dir = None
    else:
        data_dir = data.data_dir
    changed = {"image_key": None, "label_key": None, "data_dir": data_dir}
    captions = dataclasses.replace(data.captions, **OF_THE_DATA)
    return dataclasses.replace(data, name=name, eval_split=split, captions=captions, **changed)
