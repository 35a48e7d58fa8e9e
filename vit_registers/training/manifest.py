"""The SHA-256 manifest of a checkpoint folder, which says whether it is whole and unchanged."""

import hashlib
import json

from etils import epath

from vit_registers.strict_json import dumps

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
UNHASHED = {MANIFEST, "_CHECKPOINT_METADATA"}  # Orbax stamps the latter after the manifest is written


def _files(folder: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found += _files(path)
        elif path.name not in UNHASHED:
            found.append(path)
    return found


def _sha256(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: epath.Path) -> None:
    """Writes the size and SHA-256 of every file under `folder` into its manifest."""
    entries = {
        str(path.relative_to(folder)): {"bytes": path.stat().length, "sha256": _sha256(path)}
        for path in _files(folder)
    }
    (folder / MANIFEST).write_text(dumps({"format": MANIFEST_VERSION, "files": entries}))


def find_damage(folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint folder, in a few words; None where it matches its manifest."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return "it has no manifest, so it was never finished"
    except (ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    for name, entry in entries.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().length != entry["bytes"]:
            return f"{name} has {path.stat().length} bytes instead of {entry['bytes']}"
        if _sha256(path) != entry["sha256"]:
            return f"{name} has changed since it was written (SHA-256 differs)"
    return None
