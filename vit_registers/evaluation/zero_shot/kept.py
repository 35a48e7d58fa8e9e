"""Vectors of classes, computed once for a checkpoint: 80 templates of 1,000 classes are 80,000 texts."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all

from vit_registers.digests import bytes_digest, text_digest
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.evaluation.zero_shot.prompts import Prompts
from vit_registers.objectives.image_text.towers import TEXT
from vit_registers.runtime.exchange import from_first
from vit_registers.strict_json import dumps
from vit_registers.training.sharding import replicated

_ODD = (0x9E3779B1, 0x85EBCA77)


class KeptVectors(Protocol):
    """Where vectors of classes are kept, by a key that says what they depend on."""

    def read(self, key: str) -> np.ndarray | None:
        """What was written with this key; None if there is nothing, or if it is damaged."""
        ...

    def write(self, key: str, class_YxE: np.ndarray) -> None:
        """Keeps the vectors, if that is possible there."""
        ...


def vectors_key(reader: TextReader, params: Any, prompts: Prompts, mesh: jax.sharding.Mesh) -> str:
    """The digest of all that the vectors of classes depend on.

    It has the settings of the text tower, the bits of its parameters, the tokenizer, the prompts and the kind
    of devices, but not the sharding. All processes have to call it.
    """
    about = [dataclasses.asdict(reader.text), dict(reader.tokenizer.saved()), prompts.texts]
    return text_digest(dumps([*about, jax.default_backend(), _bits_digest(params[TEXT], mesh)]))


def _bits_digest(params: Any, mesh: jax.sharding.Mesh) -> str:
    """The digest of two sums for each array, modulo 2^32, of its bits mixed with their places.

    Integers are added exactly, so the digest does not depend on how the arrays are sharded.
    """

    def sums(x: jax.Array) -> jax.Array:
        place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        found = []
        for odd in _ODD:
            mixed = (bits ^ (place * jnp.uint32(odd))) * jnp.uint32(odd)
            mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0xC2B2AE3D)
            found.append((mixed ^ (mixed >> 13)).sum(dtype=jnp.uint32))
        return jnp.stack(found)

    compute = jax.jit(lambda leaves: [sums(x) for x in leaves], out_shardings=replicated(mesh))
    leaves, structure = jax.tree.flatten(params)
    return bytes_digest(str(structure).encode() + b"".join(np.asarray(x).tobytes() for x in compute(leaves)))


def read_kept(
    kept: KeptVectors, key: str, shape: tuple[int, int], mesh: jax.sharding.Mesh
) -> np.ndarray | None:
    """What process 0 reads, on every process of `mesh`; None without vectors of that shape."""
    found = kept.read(key) if jax.process_index() == 0 else None
    if found is not None and (found.shape != shape or found.dtype != np.float32):
        found = None
    if not from_first(lambda: found is not None, mesh):
        return None
    if not mesh.is_multi_process:
        return found
    return np.asarray(broadcast_one_to_all(np.zeros(shape, np.float32) if found is None else found))
