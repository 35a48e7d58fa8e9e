"""The manifest of a checkpoint folder, which shows whether the folder is complete and unchanged.

It has the size of each file, and its SHA-256, or the CRC32C that an object store has computed. The latter is
compared with that of the store, without reading the file.
"""

import json
import re
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from vit_registers.storage import contents, files
from vit_registers.storage.objects import StoreError
from vit_registers.storage.paths import is_remote
from vit_registers.strict_json import dumps

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
ITEMS = ("state", "meta")  # folders of every checkpoint; nothing else is read
COMMITTED = "commit_success.txt"  # of Orbax, in gs://; for an item some versions write it after the manifest
DAMAGED = "damaged"  # an object in a folder that is not to be restored

# Orbax changes its metadata after the manifest is written.
UNCHECKED = {MANIFEST, DAMAGED, "_CHECKPOINT_METADATA"}
_CHECKSUMS = {"sha256": re.compile("[0-9a-f]{64}"), "crc32c": re.compile("[A-Za-z0-9+/]{6}==")}


def is_committed(folder: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that is complete. In gs:// Orbax writes the file COMMITTED last."""
    return files.exists(folder / COMMITTED) if is_remote(folder) else files.is_folder(folder)


def is_marked(folder: epath.Path) -> bool:
    """Whether a folder in gs:// is marked as damaged; those of this machine are moved instead."""
    return is_remote(folder) and files.exists(folder / DAMAGED)


def mark_damaged(folder: epath.Path) -> None:
    """Marks a folder in gs:// that is no checkpoint any more, and that may be written again."""
    files.write_bytes(folder / DAMAGED, b"")
    if files.exists(folder / COMMITTED):
        files.remove(folder / COMMITTED)


def write_manifest(folder: epath.Path) -> None:
    """Writes the size and the checksum of every file under `folder` into its manifest."""
    entries = {
        name: entry
        for name, entry in contents.describe(folder).items()
        if name.rpartition("/")[2] not in UNCHECKED
    }
    files.write_bytes(folder / MANIFEST, dumps({"format": MANIFEST_VERSION, "files": entries}).encode())


def find_damage(folder: epath.Path, *, is_quick: bool = False) -> str | None:
    """A text that describes the damage of a checkpoint folder; None if it matches its manifest.

    The manifest must list every file of state/ and meta/, and neither may be empty. With `is_quick` only the
    sizes of the files are compared, not their contents. Raises StoreError if gs:// does not answer.
    """
    if not files.is_folder(folder):
        return "it is not a folder"
    if not is_committed(folder):
        return "it was never finished"
    try:
        manifest = json.loads(files.read_file(folder / MANIFEST))
    except FileNotFoundError:
        return "it has no manifest, so it was never finished"
    except StoreError:
        raise
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
    there = contents.Contents(folder)
    for name, entry in entries.items():
        if damage := there.find_difference(name, entry, is_quick=is_quick):
            return f"{name} {damage}"
    for item in ITEMS:
        for path in there.names(item):
            # File systems and file managers create hidden files, which nothing reads.
            name = path.rpartition("/")[2]
            is_read = not name.startswith(".") and name != COMMITTED and name not in UNCHECKED
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
        entry = entry if isinstance(entry, dict) else {}
        digests = {key: entry[key] for key in _CHECKSUMS if isinstance(entry.get(key), str)}
        is_valid = digests and all(_CHECKSUMS[key].fullmatch(digest) for key, digest in digests.items())
        if type(entry.get("bytes")) is not int or not is_valid:
            return f"the entry of {name!r} has no size and SHA-256"
    return None
