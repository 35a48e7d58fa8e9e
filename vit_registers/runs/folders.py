"""Entries of a run folder: whether a path still leads to one, removal, and where damaged ones are moved."""

import itertools
import os
import shutil
import time
from pathlib import Path


def is_same(file: int, path: Path) -> bool:
    """Whether an open file or folder is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class OpenFolder:
    """An existing folder that is kept open; `file` is its descriptor.

    The file system cannot give the inode number of an open folder to a later one. Raises OSError where there
    is no such folder.
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
        """Closes the folder."""
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
