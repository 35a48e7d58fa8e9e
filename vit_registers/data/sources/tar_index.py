"""The file that keeps where the samples of tar files are, so that these are not read again. No TensorFlow."""

import contextlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = ".vit_registers_index.npz"  # beside the tar files
MIN_SAMPLES = 10_000  # fewer are found in less than a second
_VERSION = 1
_logger = logging.getLogger(__name__)


class TarIndex(NamedTuple):
    """What the headers of the tar files of a folder say."""

    place_Nx6: np.ndarray  # int64; tar_shards._Place
    without_text: list[str]  # names of images


def read_tar_index(folder: Path, shards: Sequence[str]) -> TarIndex | None:
    """The index of the folder; None if there is none, or if a file has changed since it was written."""
    try:
        with open(folder / FILE, "rb") as file, np.load(file, allow_pickle=False) as saved:
            if str(saved["files"]) == _signature(folder, shards):
                return TarIndex(saved["places"], saved["without_text"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def write_index(folder: Path, shards: Sequence[str], index: TarIndex) -> None:
    """Writes the index, if the folder can be written and has many samples."""
    if len(index.place_Nx6) < MIN_SAMPLES:
        return
    names = np.array(index.without_text, np.str_)
    files = _signature(folder, shards)
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(dir=folder, prefix=FILE)  # hidden; several processes may write
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, files=files, places=index.place_Nx6, without_text=names)
            os.replace(path, folder / FILE)
            _logger.info("%s: keeps where %d samples are", folder / FILE, len(index.place_Nx6))
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _signature(folder: Path, shards: Sequence[str]) -> str:
    """The names, sizes and times of the files."""
    found = [(name, *_size_and_time(folder / name)) for name in shards]
    return json.dumps([_VERSION, found])


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
