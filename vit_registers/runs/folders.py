"""Files and folders of a run: reading, removal, identity, and the place of damaged ones."""

import errno
import itertools
import json
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from vit_registers.errors import ConfigError


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The contents of a file. Raises OSError, also for a named pipe, which would block."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is not a regular file; move it away")
    return Path(path).read_bytes()


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file, None if there is no file. Raises ConfigError if it cannot be read."""
    try:
        value = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {why}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} cannot be read: it is not a JSON object")
    return value


def is_same(file: int, path: Path) -> bool:
    """Whether an open file or folder is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class OpenFolder:
    """An existing folder that is kept open; `file` is its descriptor.

    The file system cannot give the inode number of an open folder to a later one. Raises OSError if the
    folder does not exist.
    """

    def __init__(self, path: Path):
        self._path = path
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_there(self) -> bool:
        """Whether the path still leads to the folder. True where the file system does not answer."""
        try:
            return is_same(self.file, self._path)
        except OSError:
            return True

    def close(self) -> None:
        os.close(self.file)


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file, a folder with its contents, or a link but not its target. Raises OSError."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def damaged_path(run: Path, name: str) -> Path:
    """An unused path in RUN/damaged for an entry called `name`. Creates the folder; raises OSError."""
    folder, stem = run / "damaged", f"{name}-{int(time.time())}"
    folder.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    return next(folder / unused for unused in names if not os.path.lexists(folder / unused))
