"""The files below a folder with their sizes and checksums: SHA-256, or in gs:// the CRC32C of the store."""

import os
import stat
from collections.abc import Iterator
from typing import Any

from etils import epath

from vit_registers.digests import file_crc32c, files_digest
from vit_registers.errors import require_extra
from vit_registers.storage import objects
from vit_registers.storage.paths import is_remote


def _walk(folder: epath.Path) -> Iterator[str]:
    """The files below a folder of this machine, as paths relative to it. Links are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(parent, name), folder)


def describe(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """{path in the folder: {"bytes": size, "sha256" or "crc32c": checksum}} of every file below it."""
    if not is_remote(folder):
        return {
            name: {"bytes": os.path.getsize(folder / name), "sha256": files_digest([folder / name])}
            for name in _walk(folder)
        }
    return {
        name: {"bytes": found.size}
        | ({"crc32c": found.crc32c} if found.crc32c else {"sha256": files_digest([folder / name])})
        for name, found in objects.find_all(folder).items()
    }


class Contents:
    """The files below a folder, listed once in gs://."""

    def __init__(self, folder: epath.Path):
        self._folder = epath.Path(folder)
        self._objects = objects.find_all(folder) if is_remote(folder) else None

    def names(self, item: str) -> Iterator[str]:
        """The files below the folder `item`, as paths in that folder."""
        if self._objects is None:
            return _walk(self._folder / item)
        return (name.removeprefix(f"{item}/") for name in self._objects if name.startswith(f"{item}/"))

    def find_difference(self, name: str, entry: dict[str, Any], *, is_quick: bool) -> str | None:
        """How a file differs from its entry of describe(), in words; None if it does not.

        With `is_quick` only the sizes are compared.
        """
        path = self._folder / name
        try:
            if (size := self._size(name)) is None:
                return "is not a file"
            if size != entry["bytes"]:
                return f"has {size} bytes instead of {entry['bytes']}"
            if not is_quick and (kind := self._find_other_checksum(name, path, entry)):
                return f"has changed since it was written ({kind} differs)"
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except (OSError, ValueError) as error:  # ValueError: a name that no file system allows
            return f"cannot be read: {getattr(error, 'strerror', None) or error}"
        return None

    def _size(self, name: str) -> int | None:
        """The size of a file; None if it is something else. Raises OSError."""
        if self._objects is not None:
            if name not in self._objects:
                raise FileNotFoundError(name)
            return self._objects[name].size
        status = os.stat(self._folder / name)
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def _find_other_checksum(self, name: str, path: epath.Path, entry: dict[str, Any]) -> str | None:
        if "sha256" in entry:
            return None if files_digest([path]) == entry["sha256"] else "SHA-256"
        stored = None if self._objects is None else self._objects[name].crc32c
        if stored is None:
            require_extra("gcs", "google_crc32c", what="checking a checkpoint that was copied from gs://")
            stored = file_crc32c(path)
        return None if stored == entry["crc32c"] else "CRC32C"
