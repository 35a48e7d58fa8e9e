"""Files on this machine, for libraries that cannot read or write gs://."""

import atexit
import functools
import os
import shutil
import tempfile

from etils import epath

from vit_registers.storage import objects
from vit_registers.storage.paths import is_remote


def _new_folder() -> str:
    folder = tempfile.mkdtemp(prefix="vit-registers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def local_copy(path: epath.Path) -> str:
    """The path of a file on this machine: `path`, or a copy of the object in a temporary folder."""
    if not is_remote(path):
        return str(path)
    copy = os.path.join(_new_folder(), path.name)
    with open(copy, "wb") as file:
        file.write(objects.read_object(path))
    return copy


def copied_folder(path: epath.Path) -> str:
    """The path of a folder on this machine: `path`, or for gs:// a new temporary folder."""
    return _new_folder() if is_remote(path) else str(path)
