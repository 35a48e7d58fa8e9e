"""A file to which lines are appended while a run writes in its folder: metrics.jsonl."""

import contextlib
import os
import time
from typing import BinaryIO

from etils import epath

from vit_registers.status import say
from vit_registers.storage import objects
from vit_registers.storage.files import OpenFolder
from vit_registers.storage.paths import is_remote

_REMOVAL_S = 1.0  # allowed for the removal of a folder
_PUT_S = 10.0  # between two writes of a whole object


class LineFile:
    """An existing file of this machine, opened to append lines. Raises OSError if it cannot be opened.

    Lines that cannot be written are written with the next. A file that is removed is written again.
    """

    def __init__(self, path: epath.Path):
        self._path, self._waiting = path, b""
        self._missing_since: float | None = None
        self._folder = OpenFolder(path.parent)
        self._file = self._open()

    def _open(self) -> BinaryIO:
        # In the folder that the run was started in, not in one that has taken its name.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(self._path.name, flags, 0o666, dir_fd=self._folder.file), "ab", buffering=0)

    def _follow(self, is_last: bool) -> bool:
        """Whether the open file is the one in the folder, after opening it again where needed.

        The contents of a removed file are put before the waiting lines. The file is not created again at
        once, as the whole folder may be under removal.
        """
        try:
            there = os.stat(self._path.name, dir_fd=self._folder.file)
            if os.path.samestat(there, os.fstat(self._file.fileno())):
                return True
            earlier, what = b"", "replaced: lines are written to the new file"
        except FileNotFoundError:
            self._missing_since = self._missing_since or time.monotonic()
            if not is_last and time.monotonic() < self._missing_since + _REMOVAL_S:
                return False
            earlier = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
            what = "removed: it is written again"
        opened = self._open()
        self._file.close()
        self._file, self._waiting, self._missing_since = opened, earlier + self._waiting, None
        say(f"during the run, {self._path} was {what}")
        return True

    def append(self, line: bytes) -> OSError | None:
        """Writes the waiting lines and this one. Returns the first error of several in a row, if any."""
        is_first, self._waiting = not self._waiting, self._waiting + line
        return self._write(is_last=not line, is_said=is_first)

    def settle(self) -> OSError | None:
        """Writes the waiting lines. Returns the error if they cannot be written."""
        return self._write(is_last=True, is_said=True) if self._waiting else None

    def before_save(self) -> OSError | None:
        """To be called before a checkpoint is saved. Nothing is left to do on this machine."""
        return None

    def _write(self, *, is_last: bool, is_said: bool) -> OSError | None:
        size = None
        try:
            if not self._follow(is_last):
                return None
            size = os.fstat(self._file.fileno()).st_size
            left = self._waiting
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
            return error if is_said else None
        self._waiting = b""
        return None

    def close(self) -> None:
        """Closes the file. Waiting lines are lost."""
        self._file.close()
        self._folder.close()


class LineObject:
    """The same in gs://, where an object is written as a whole: at most every 10 s, and before saves.

    A run that is killed loses the lines since its last save, which the resumed run writes again.
    """

    def __init__(self, path: epath.Path):
        self._path, self._lines = path, objects.read_object(path)
        self._is_waiting, self._is_failing = False, False
        self._next_s = time.monotonic() + _PUT_S

    def append(self, line: bytes) -> OSError | None:
        """Adds a line, and writes the object if that is due. Returns the first error of several in a row."""
        self._lines, self._is_waiting = self._lines + line, True
        if time.monotonic() < self._next_s:
            return None
        is_first = not self._is_failing
        error = self.settle()
        return error if is_first else None

    def settle(self) -> OSError | None:
        """Writes the object if a line was added. Returns the error if it cannot be written."""
        if not self._is_waiting:
            return None
        try:
            objects.write_object(self._path, self._lines)
        except OSError as error:
            self._is_failing = True
            return error
        finally:
            self._next_s = time.monotonic() + _PUT_S
        self._is_waiting = self._is_failing = False
        return None

    def before_save(self) -> OSError | None:
        """Writes the lines that a resumed run expects up to the step of the checkpoint."""
        return self.settle()

    def close(self) -> None:
        """Nothing: no connection belongs to the object."""


def open_lines(path: epath.Path) -> LineFile | LineObject:
    """The existing file or object at `path`, to append lines to. Raises OSError."""
    return LineObject(path) if is_remote(path) else LineFile(path)
