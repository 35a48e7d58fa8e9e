"""A head in training, on disk: arrays in one file that is complete or unchanged."""

import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from vit_registers.digests import bytes_digest
from vit_registers.runtime.exchange import from_first


class SavedHead(NamedTuple):
    """Where a head is kept, and what it is trained from."""

    path: Path  # NAME.npz
    identity: str  # everything that the head depends on; a file of another identity is not resumed


def write_head(saved: SavedHead, state: Any) -> None:
    """Writes the arrays of `state`, nested tuples and dicts, atomically, in process 0. Raises OSError."""
    if jax.process_index() != 0:
        return
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]
    saved.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = saved.path.with_name(f"{saved.path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, np.array(saved.identity), *arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, saved.path)


def read_head(saved: SavedHead, like: Any) -> Any | None:
    """The state on disk, as numpy arrays in the structure of `like`.

    None if there is no file, or one of another identity or of other shapes, or one that is damaged.
    """
    shapes, structure = jax.tree.flatten(like)
    try:
        # np.load leaves a damaged file open that it has opened
        with saved.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["arr_0"]) != saved.identity:
                return None
            leaves = [arrays[f"arr_{i + 1}"] for i in range(len(shapes))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if any(x.shape != y.shape or x.dtype != y.dtype for x, y in zip(leaves, shapes, strict=True)):
        return None
    return jax.tree.unflatten(structure, leaves)


def restore_head(saved: SavedHead, like: Any, mesh: jax.sharding.Mesh) -> Any | None:
    """What process 0 reads by `read_head`, on every process of `mesh`, as other hosts may lack the file."""
    found = read_head(saved, like) if jax.process_index() == 0 else None
    if not from_first(lambda: found is not None, mesh):
        return None
    if not mesh.is_multi_process:
        return found
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return broadcast_one_to_all(blank if found is None else found)


def checksum(params: Any) -> str:
    """A text that differs between parameters: the sum and the sum of squares of each array."""
    if not (leaves := jax.tree.leaves(params)):
        return ""
    sums = jax.jit(lambda leaves: [jnp.stack([x.sum(), jnp.square(x).sum()]) for x in leaves])(leaves)
    return bytes_digest(b"".join(np.asarray(x).tobytes() for x in sums))
