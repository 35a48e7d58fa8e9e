"""Losses over prototypes in chunks of rows, so that only the logits of one chunk are in memory.

The logits of a chunk are computed again in the backward pass. Axis letters: heads.py.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.objectives.self_distillation import targets
from vit_registers.objectives.self_distillation.losses import cross_entropies

_AXES = 2  # of rows: groups or images, and rows within


class Rows(NamedTuple):
    """Unit vectors of the heads' bottleneck, for rows that are compared with each other.

    student: GxMxSxE; teacher: GxMxVxE; weight: GxMxSxV, of the cross-entropy of each pair, 0 for padding;
    is_row: GxM. The axis G is split over devices, M is cut into chunks.
    """

    student: jax.Array
    teacher: jax.Array
    weight: jax.Array
    is_row: jax.Array


def split(rows: Any, num_chunks: int) -> Any:
    """The rows with a leading axis of chunks, cut from axis M, which must divide."""

    def cut(x: jax.Array) -> jax.Array:
        parts = x.reshape(x.shape[0], num_chunks, x.shape[1] // num_chunks, *x.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    return jax.tree.map(cut, rows)


def pad_rows(rows: Rows, num_chunks: int) -> Rows:
    """The rows, padded along M to a multiple of the chunks with rows of weight 0."""
    missing = -rows.is_row.shape[1] % num_chunks
    if not missing:
        return rows
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - _AXES)), rows)


def count_chunks(rows: Rows, chunk_rows: int) -> int:
    """The number of chunks that have at most `chunk_rows` student rows on a device, or one row of each
    group."""
    groups, length, each = rows.student.shape[:3]
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp"))  # of the batch
    return min(math.ceil(groups * length * each / (chunk_rows * parts)), length)


def _logits(x_xE: jax.Array, kernel_ExZ: jax.Array, dtype: Any) -> jax.Array:
    return jnp.matmul(x_xE.astype(dtype), kernel_ExZ.astype(dtype), preferred_element_type=jnp.float32)


def weighted_cross_entropy(
    rows: Rows,
    student_ExZ: jax.Array,
    teacher_ExZ: jax.Array,
    *,
    offset_of: Callable[[Callable[[Any], jax.Array], Any], jax.Array],
    temperature: jax.typing.ArrayLike,
    chunk_rows: int,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(sums SxV of weight times cross-entropy over all rows, statistics of the teacher).

    `student_ExZ` and `teacher_ExZ` are the kernels of the last layers; `offset_of(logits_of, chunks)` gives
    offset_Z of the targets (targets.py), where logits_of((x, is_row)) are logits of the teacher's rows. The
    statistics are "total_Z", the sum of the teacher's logits, "count", "entropy", the sum of the entropies of
    the targets, and "use_Z", the sum of the targets.
    """
    num_chunks = count_chunks(rows, chunk_rows)
    chunks = split(pad_rows(rows, num_chunks), num_chunks)
    teacher_ExZ = jax.lax.stop_gradient(teacher_ExZ)
    chunks = chunks._replace(teacher=jax.lax.stop_gradient(chunks.teacher))
    offset_Z = offset_of(lambda x: _logits(x, teacher_ExZ, dtype), chunks)

    def body(carry: Any, chunk: Rows) -> tuple[Any, None]:
        sums_SxV, stats = carry
        student, teacher = (
            _logits(chunk.student, student_ExZ, dtype),
            _logits(chunk.teacher, teacher_ExZ, dtype),
        )
        student, teacher = (x.reshape(-1, *x.shape[_AXES:]) for x in (student, teacher))
        weight_MxSxV = chunk.weight.reshape(-1, *chunk.weight.shape[_AXES:])
        ce_MxSxV = cross_entropies(student, teacher, offset_Z, temperature)
        sums_SxV += jnp.where(weight_MxSxV > 0, weight_MxSxV * ce_MxSxV, 0.0).sum(axis=0)
        more = _statistics(teacher, chunk.is_row.reshape(-1), offset_Z, temperature)
        return (sums_SxV, jax.tree.map(jnp.add, stats, more)), None

    num_prototypes = teacher_ExZ.shape[1]
    zeros = {name: jnp.zeros(num_prototypes) for name in ("total_Z", "use_Z")}
    zeros |= {name: jnp.zeros(()) for name in ("count", "entropy")}
    first = (jnp.zeros(rows.weight.shape[_AXES:]), zeros)
    (sums_SxV, stats), _ = jax.lax.scan(jax.checkpoint(body), first, chunks)
    return sums_SxV, stats


def _statistics(
    teacher_MxVxZ: jax.Array, is_row_M: jax.Array, offset_Z: jax.Array, temperature: jax.typing.ArrayLike
) -> dict[str, jax.Array]:
    teacher_MxVxZ = jax.lax.stop_gradient(teacher_MxVxZ)
    log_p_MxVxZ = jax.nn.log_softmax(teacher_MxVxZ / temperature + offset_Z[None, None], axis=-1)
    p_MxVxZ = jnp.where(is_row_M[:, None, None], jnp.exp(log_p_MxVxZ), 0.0)
    entropy = -jnp.where(p_MxVxZ > 0, p_MxVxZ * log_p_MxVxZ, 0.0).sum()
    return {
        "total_Z": jnp.where(is_row_M[:, None, None], teacher_MxVxZ, 0.0).sum(axis=(0, 1)),
        "use_Z": p_MxVxZ.sum(axis=(0, 1)),
        "count": is_row_M.sum(dtype=jnp.float32) * teacher_MxVxZ.shape[1],
        "entropy": entropy,
    }


def centring(centre_Z: jax.Array, temperature: jax.typing.ArrayLike) -> Callable[..., jax.Array]:
    """offset_of for centring."""
    return lambda logits_of, chunks: targets.centre_offset(centre_Z, temperature)


def sinkhorn(temperature: jax.typing.ArrayLike) -> Callable[..., jax.Array]:
    """offset_of for Sinkhorn-Knopp over all rows of the teacher."""

    def offset_of(logits_of: Callable[[Any], jax.Array], chunks: Rows) -> jax.Array:
        views = chunks.teacher.shape[-2]
        x = chunks.teacher.reshape(chunks.teacher.shape[0], -1, chunks.teacher.shape[-1])
        is_row = jnp.broadcast_to(chunks.is_row[..., None], (*chunks.is_row.shape, views))
        return targets.sinkhorn_offset(logits_of, x, is_row.reshape(len(x), -1), temperature)

    return offset_of
