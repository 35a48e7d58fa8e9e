"""What is in run folders, on this machine or in gs://: reading, writing, listing and removal.

All functions raise OSError with a `strerror` of one line.
"""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

from vit_registers import strict_json
from vit_registers.errors import ConfigError
from vit_registers.storage import objects
from vit_registers.storage.paths import is_remote

Name = str | os.PathLike[str]


def exists(path: Name) -> bool:
    """Whether there is a file or folder. A local link to nothing is neither."""
    if is_remote(path):
        return objects.find_object(path) is not None or objects.has_objects(path)
    return os.path.exists(path)


def is_taken(path: Name) -> bool:
    """Whether something is there, also a local link to nothing."""
    return exists(path) if is_remote(path) else os.path.lexists(path)


def is_folder(path: Name) -> bool:
    """Whether there is a folder. An empty one exists only on this machine."""
    return objects.has_objects(path) if is_remote(path) else os.path.isdir(path)


def can_hold(path: Name) -> bool:
    """Whether files can be written below a path: there is a folder, or it is in gs://."""
    return is_remote(path) or os.path.isdir(path)


def names(path: Name) -> list[str]:
    """The names of what is in a folder, sorted. In gs://, a folder that does not exist is empty."""
    return objects.list_names(path) if is_remote(path) else sorted(os.listdir(path))


def modified_s(path: Name) -> float:
    """The time of the last change of a file, in seconds since 1970."""
    return objects.changed_s(path) if is_remote(path) else os.stat(path).st_mtime


def read_file(path: Name) -> bytes:
    """The contents of a file. Raises OSError, also for a named pipe, which would block."""
    if is_remote(path):
        return objects.read_object(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is not a regular file; move it away")
    return epath.Path(path).read_bytes()


def read_end(path: Name, num_bytes: int) -> bytes:
    """The last bytes of a file; all of a shorter one."""
    if is_remote(path):
        return objects.read_object(path, last_bytes=num_bytes)
    if not os.path.isfile(path):  # a named pipe would block
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - num_bytes, 0))
        return file.read()


def read_json_object(path: Name) -> dict[str, Any] | None:
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


def write_bytes(path: Name, data: bytes) -> None:
    """Writes a file. In gs:// it is complete or unchanged."""
    if is_remote(path):
        objects.write_object(path, data)
    else:
        epath.Path(path).write_bytes(data)


def write_text(path: Name, text: str) -> None:
    """Writes a file that is complete or unchanged, even if the process is killed."""
    if is_remote(path):
        objects.write_object(path, text.encode())
    else:
        strict_json.write_text(pathlib.Path(path), text)


def write_json(path: Name, value: Any) -> None:
    """Writes strict JSON as `write_text` does."""
    write_text(path, strict_json.dumps(value) + "\n")


def make_folder(path: Name) -> None:
    """Creates a folder and those above it, if needed. In gs:// there are no folders without objects."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def missing_folders(path: epath.Path) -> list[epath.Path]:
    """`path` and the folders above it that do not exist, the lowest first; none in gs://."""
    return [] if is_remote(path) else [one for one in (path, *path.parents) if not os.path.lexists(one)]


def check_writable(path: Name) -> None:
    """Creates a folder if needed, and raises OSError if a file cannot be written there."""
    if is_remote(path):
        probe = epath.Path(path) / f".writable-{os.getpid()}-{time.time_ns()}"
        objects.write_object(probe, b"")
        objects.remove_objects(probe)
        return
    make_folder(path)
    with tempfile.TemporaryFile(dir=path, prefix=".writable-"):
        pass


def copy(path: Name, target: Name) -> None:
    """Copies a file."""
    if is_remote(path):
        objects.copy_object(path, target)
    else:
        shutil.copy(path, target)


def move(path: Name, target: Name) -> None:
    """Renames a file or folder of this machine."""
    os.rename(path, target)


def check_appendable(path: Name) -> None:
    """Raises OSError if nothing can be appended to a file of this machine. Creates it if needed."""
    if not is_remote(path):
        open(path, "ab").close()


@contextlib.contextmanager
def appended(path: Name) -> Iterator[BinaryIO]:
    """A file to append to, with a descriptor that other programs can write to.

    For gs:// it is a local file with the same contents, which is written to the object at the end.
    """
    if not is_remote(path):
        with open(path, "ab") as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        with contextlib.suppress(FileNotFoundError):
            file.write(objects.read_object(path))
        try:
            yield file  # pyright: ignore[reportReturnType]
        finally:
            file.seek(0)
            objects.write_object(path, file.read())


def is_same(file: int, path: Name) -> bool:
    """Whether an open local file or folder is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


class OpenFolder:
    """An existing local folder that is kept open; `file` is its descriptor.

    The file system cannot give the inode number of an open folder to a later one. Raises OSError if the
    folder does not exist.
    """

    def __init__(self, path: Name):
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


def remove(path: Name) -> None:
    """Removes a file, a folder with its contents, or a link but not its target. Raises OSError."""
    if is_remote(path):
        objects.remove_objects(path)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def remove_file(path: Name) -> None:
    """Removes a file, if there is one. Raises OSError for a folder of this machine."""
    with contextlib.suppress(FileNotFoundError):
        if is_remote(path):
            objects.remove_objects(path)
        else:
            os.unlink(path)


def remove_empty(path: Name) -> None:
    """Removes a folder of this machine. Raises OSError if it is not empty."""
    os.rmdir(path)


def damaged_path(run: epath.Path, name: str) -> epath.Path:
    """An unused path in RUN/damaged for an entry called `name`. Creates the folder; raises OSError."""
    folder, stem = epath.Path(run) / "damaged", f"{name}-{int(time.time())}"
    make_folder(folder)
    found = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    return next(folder / unused for unused in found if not is_taken(folder / unused))
