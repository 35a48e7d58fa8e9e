"""Losses over prototypes in chunks of rows, so that only the logits of one chunk are in memory.

The gradient of a chunk is computed with its loss, so no logits are computed twice. Axis letters: heads.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.objectives.self_distillation import targets
from vit_registers.objectives.self_distillation.losses import cross_entropies, target_probabilities

_AXES = 2  # of rows: groups or images, and rows within


class HeadRows(NamedTuple):
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


def pad_rows(rows: HeadRows, num_chunks: int) -> HeadRows:
    """The rows, padded along M to a multiple of the chunks with rows of weight 0."""
    missing = -rows.is_row.shape[1] % num_chunks
    if not missing:
        return rows
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - _AXES)), rows)


def count_chunks(rows: HeadRows, chunk_rows: int) -> int:
    """The number of chunks that have at most `chunk_rows` student rows on a device, or one row of each
    group."""
    groups, length, each = rows.student.shape[:3]
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = math.prod(sizes.get(axis, 1) for axis in ("data", "fsdp"))  # of the batch
    return min(math.ceil(groups * length * each / (chunk_rows * parts)), length)


def _logits(x_xE: jax.Array, kernel_ExZ: jax.Array, dtype: Any) -> jax.Array:
    return jnp.matmul(x_xE.astype(dtype), kernel_ExZ.astype(dtype), preferred_element_type=jnp.float32)


def weighted_cross_entropy(
    rows: HeadRows,
    student_ExZ: jax.Array,
    teacher_ExZ: jax.Array,
    *,
    offset_of: Callable[[Callable[[Any], jax.Array], Any], jax.Array],
    temperature: jax.typing.ArrayLike,
    chunk_rows: int,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(total, sums SxV of weight times cross-entropy over all rows, statistics of the teacher).

    Only `total`, the sum of all sums, has a gradient, of the student's rows and kernel.
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
    constants = _Constants(
        teacher=chunks.teacher,
        weight=chunks.weight,
        is_row=chunks.is_row,
        teacher_ExZ=teacher_ExZ,
        offset_Z=offset_Z,
        temperature=jnp.asarray(temperature),
    )
    return _total(chunks.student, student_ExZ, constants, dtype)


class _Constants(NamedTuple):
    """What the cross-entropy depends on without a gradient; the first three have an axis of chunks."""

    teacher: jax.Array
    weight: jax.Array
    is_row: jax.Array
    teacher_ExZ: jax.Array
    offset_Z: jax.Array
    temperature: jax.Array


def _chunk_total(
    logits_GxMxSxZ: jax.Array, constants: _Constants, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
    """(total, (sums SxV, statistics)) of one chunk with these logits of the student."""
    offset_Z, temperature = constants.offset_Z, constants.temperature
    logits = logits_GxMxSxZ, _logits(constants.teacher, constants.teacher_ExZ, dtype)
    own, other = (x.reshape(-1, *x.shape[_AXES:]) for x in logits)
    weight_MxSxV = constants.weight.reshape(-1, *constants.weight.shape[_AXES:])
    ce_MxSxV = cross_entropies(own, other, offset_Z, temperature)
    sums_SxV = jnp.where(weight_MxSxV > 0, weight_MxSxV * ce_MxSxV, 0.0).sum(axis=0)
    return sums_SxV.sum(), (sums_SxV, _statistics(other, constants.is_row.reshape(-1), offset_Z, temperature))


def _over_chunks(
    student: jax.Array, constants: _Constants, add: Callable[[jax.Array, _Constants], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """(sum, stacked) of add(chunk of `student`, its constants) = (terms to add, values to stack)."""

    def body(carry: Any, chunk: Any) -> tuple[Any, Any]:
        own, teacher, weight, is_row = chunk
        more, kept = add(own, constants._replace(teacher=teacher, weight=weight, is_row=is_row))
        return more if carry is None else jax.tree.map(jnp.add, carry, more), kept

    chunks = (student, constants.teacher, constants.weight, constants.is_row)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), chunks)
    shapes = jax.eval_shape(lambda chunk: body(None, chunk)[0], first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(body, zeros, chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _total(
    student: jax.Array, student_ExZ: jax.Array, constants: _Constants, dtype: Any
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(total, sums SxV, statistics) over all chunks; the last two have no gradient."""

    def add(own: jax.Array, chunk: _Constants) -> tuple[Any, None]:
        return _chunk_total(_logits(own, student_ExZ, dtype), chunk, dtype), None

    (total, (sums_SxV, stats)), _ = _over_chunks(student, constants, add)
    return total, sums_SxV, stats


def _total_with_gradient(
    student: jax.Array, student_ExZ: jax.Array, constants: _Constants, dtype: Any
) -> tuple[tuple[jax.Array, jax.Array, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]:
    """(what _total returns, the gradient of its total by rows and kernel)."""

    def add(own: jax.Array, chunk: _Constants) -> tuple[Any, jax.Array]:
        gradient = jax.value_and_grad(_chunk_total, has_aux=True)
        found, by_GxMxSxZ = gradient(_logits(own, student_ExZ, dtype), chunk, dtype)
        # Not derived from _logits, as XLA then makes a transposed copy of the gradient by the logits.
        by_GxMxSxZ = by_GxMxSxZ.astype(dtype)
        by_ExZ = jnp.einsum("gmse,gmsz->ez", own.astype(dtype), by_GxMxSxZ)
        by_rows = jnp.einsum("gmsz,ez->gmse", by_GxMxSxZ, student_ExZ.astype(dtype))
        return (found, by_ExZ.astype(student_ExZ.dtype)), by_rows.astype(own.dtype)

    ((total, (sums_SxV, stats)), by_ExZ), by_rows = _over_chunks(student, constants, add)
    return (total, sums_SxV, stats), (by_rows, by_ExZ)


def _backward(dtype: Any, gradient: tuple[jax.Array, jax.Array], cotangents: Any) -> tuple[Any, Any, None]:
    by_rows, by_ExZ = gradient
    return cotangents[0] * by_rows, cotangents[0] * by_ExZ, None


_total.defvjp(_total_with_gradient, _backward)


def _statistics(
    teacher_MxVxZ: jax.Array, is_row_M: jax.Array, offset_Z: jax.Array, temperature: jax.typing.ArrayLike
) -> dict[str, jax.Array]:
    teacher_MxVxZ = jax.lax.stop_gradient(teacher_MxVxZ)
    p_MxVxZ = target_probabilities(teacher_MxVxZ, offset_Z, temperature)
    # log p = x - max x + log max p, without a logarithm for each prototype
    x_MxVxZ = teacher_MxVxZ / temperature + offset_Z[None, None]
    below_MxVxZ = jnp.where(p_MxVxZ > 0, x_MxVxZ - x_MxVxZ.max(axis=-1, keepdims=True), 0.0)
    entropy_MxV = -jnp.log(p_MxVxZ.max(axis=-1)) - (p_MxVxZ * below_MxVxZ).sum(axis=-1)
    is_row_Mx1x1 = is_row_M[:, None, None]
    return {
        "total_Z": jnp.where(is_row_Mx1x1, teacher_MxVxZ, 0.0).sum(axis=(0, 1)),
        "use_Z": jnp.where(is_row_Mx1x1, p_MxVxZ, 0.0).sum(axis=(0, 1)),
        "count": is_row_M.sum(dtype=jnp.float32) * teacher_MxVxZ.shape[1],
        "entropy": jnp.where(is_row_M[:, None], entropy_MxV, 0.0).sum(),
    }


def centring(centre_Z: jax.Array, temperature: jax.typing.ArrayLike) -> Callable[..., jax.Array]:
    """offset_of for centring."""
    return lambda logits_of, chunks: targets.centre_offset(centre_Z, temperature)


def sinkhorn(temperature: jax.typing.ArrayLike) -> Callable[..., jax.Array]:
    """offset_of for Sinkhorn-Knopp over all rows of the teacher."""

    def offset_of(logits_of: Callable[[Any], jax.Array], chunks: HeadRows) -> jax.Array:
        views = chunks.teacher.shape[-2]
        x = chunks.teacher.reshape(chunks.teacher.shape[0], -1, chunks.teacher.shape[-1])
        is_row = jnp.broadcast_to(chunks.is_row[..., None], (*chunks.is_row.shape, views))
        return targets.sinkhorn_offset(logits_of, x, is_row.reshape(len(x), -1), temperature)

    return offset_of
