"""Whether a path still leads to the file or folder that it led to."""

import os
from pathlib import Path


def is_same(file: int, path: Path) -> bool:
    """Whether an open file or folder is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class OpenFolder:
    """A folder that is there now, and later whether it still is; `file` is its descriptor.

    It is kept open, so that the file system cannot give its inode number to a later folder. Raises OSError
    where there is no such folder.
    """

    def __init__(self, path: Path):
        self._path = path
        self.file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def is_there(self) -> bool:
        """Whether the path still leads to it. True where that cannot be found out."""
        try:
            return is_same(self.file, self._path)
        except OSError:  # as of a file system that does not answer for a while
            return True

    def close(self) -> None:
        """Releases the folder."""
        os.close(self.file)
