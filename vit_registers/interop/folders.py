"""Finds the files of a folder that hold the tensors: one file, or the shards of an index."""

import json
from pathlib import Path

from vit_registers.errors import CheckpointError

AGAIN = "copy or download it again"
_IN_A_FOLDER = [n + end for n in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]
_IN_A_FOLDER += ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")


def find_weights(folder: Path) -> Path:
    """The file or index with the tensors. Raises CheckpointError if there is none, or more than one."""
    found = [folder / name for name in _IN_A_FOLDER if (folder / name).exists()][:1]
    found = found or sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{folder} holds {', '.join(p.name for p in found)}: name one of them")
    looked_for = f"{', '.join(_IN_A_FOLDER)}, or one file with suffix {' '.join(_SUFFIXES)}"
    raise CheckpointError(f"{folder} holds no weights: looked for {looked_for}")


def own_file(path: Path, name: str) -> Path | None:
    """The file `name` that belongs to the weights at `path`: in their folder, or beside its only tensors.

    None if there is none. Files of other names may lie beside weights that they do not belong to.
    """
    is_ours = path.is_dir() or path.stem == "model"
    file = (path if path.is_dir() else path.parent) / name
    return file if is_ours and file.is_file() else None


def read_index(path: Path) -> dict[str, Path]:
    """{tensor name: shard} of an index file.

    Raises CheckpointError if the index is damaged, or names a file outside its folder.
    """
    try:
        weight_map = dict(json.loads(path.read_text())["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is not JSON with 'weight_map' ({what}): {AGAIN}") from error
    files = list(weight_map.values())
    if odd := [file for file in files if not isinstance(file, str) or file != Path(file).name]:
        raise CheckpointError(
            f"{path} names {odd[0]!r} as a shard: only names of files in its folder may be there"
        )
    shards = {file: _shard(path, file) for file in dict.fromkeys(files)}
    return {name: shards[file] for name, file in weight_map.items()}


def _shard(index: Path, name: str) -> Path:
    """The file of that name beside the index. CheckpointError if it is missing or links elsewhere."""
    path, folder = index.parent / name, index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # Hugging Face's cache, whose files are links to its blobs
        allowed.append(folder.parents[1] / "blobs")
    if not path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is missing, which {index.name} names: download it too")
    if path.resolve().parent not in allowed:
        raise CheckpointError(
            f"{path}, which {index.name} names, is a link that leaves its folder: copy the file"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}, which {index.name} names, is not a file: {AGAIN}")
    return path
