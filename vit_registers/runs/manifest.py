"""The SHA-256 manifest of a checkpoint folder, which shows whether the folder is complete and unchanged."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from vit_registers.digests import files_digest
from vit_registers.runs.folders import read_file
from vit_registers.strict_json import dumps

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
ITEMS = ("state", "meta")  # folders of every checkpoint; nothing else is read
UNHASHED = {MANIFEST, "_CHECKPOINT_METADATA"}  # Orbax changes the latter after the manifest is written

_LATE = "commit_success.txt"  # some versions of Orbax write it after the manifest
_SHA256 = re.compile("[0-9a-f]{64}")


def _files(folder: epath.Path) -> Iterator[str]:
    """The files below `folder`, as paths relative to it. Links to folders are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name not in UNHASHED:
                yield os.path.relpath(os.path.join(parent, name), folder)


def write_manifest(folder: epath.Path) -> None:
    """Writes the size and SHA-256 of every file under `folder` into its manifest."""
    entries = {
        name: {"bytes": (folder / name).stat().length, "sha256": files_digest([folder / name])}
        for name in _files(folder)
    }
    (folder / MANIFEST).write_text(dumps({"format": MANIFEST_VERSION, "files": entries}))


def find_damage(folder: epath.Path, *, is_quick: bool = False) -> str | None:
    """A text that describes the damage of a checkpoint folder; None if it matches its manifest.

    The manifest must list every file of state/ and meta/, and neither may be empty. With `is_quick` only the
    sizes of the files are compared, not their contents.
    """
    if not os.path.isdir(folder):
        return "it is not a folder"
    try:
        manifest = json.loads(read_file(folder / MANIFEST))
    except FileNotFoundError:
        return "it has no manifest, so it was never finished"
    except OSError as error:
        return f"its manifest cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return "its manifest cannot be read: it is not JSON"
    if wrong := _find_wrong_entry(manifest):
        return f"its manifest cannot be used: {wrong}"
    entries = manifest["files"]
    for item in ITEMS:
        if not any(name.startswith(f"{item}/") for name in entries):
            return f"its manifest lists no file of {item}/"
    for name, entry in entries.items():
        if damage := _compare(folder / name, entry, is_quick):
            return f"{name} {damage}"
    for item in ITEMS:
        for path in _files(folder / item):
            # File systems and file managers create hidden files, which nothing reads.
            is_read = not os.path.basename(path).startswith(".") and os.path.basename(path) != _LATE
            if is_read and f"{item}/{path}" not in entries:
                return f"its manifest does not list {item}/{path}"
    return None


def _find_wrong_entry(manifest: Any) -> str | None:
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        return 'it has no object "files"'
    for name, entry in files.items():
        path = PurePosixPath(name)
        if str(path) != name or path.is_absolute() or ".." in path.parts or "\0" in name or name == ".":
            return f"{name!r} is not a path in the folder"
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            return f"the entry of {name!r} has no size and SHA-256"
    return None


def _compare(path: epath.Path, entry: dict[str, Any], is_quick: bool) -> str | None:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return "is not a file"
        if status.st_size != entry["bytes"]:
            return f"has {status.st_size} bytes instead of {entry['bytes']}"
        if not is_quick and files_digest([path]) != entry["sha256"]:
            return "has changed since it was written (SHA-256 differs)"
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except (OSError, ValueError) as error:  # ValueError: a name that no file system allows
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None
