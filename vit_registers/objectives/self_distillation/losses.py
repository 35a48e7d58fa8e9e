"""Cross-entropies between teacher and student over prototypes, and KoLeo. Axis letters: heads.py."""

import jax
import jax.numpy as jnp

STUDENT_TEMPERATURE = 0.1
KOLEO_EPS = 1e-8


def cross_entropies(
    student_MxSxZ: jax.Array,
    teacher_MxVxZ: jax.Array,
    offset_Z: jax.Array,
    temperature: jax.typing.ArrayLike,
) -> jax.Array:
    """-sum_z t_z log softmax(student / 0.1)_z for each pair of S student and V teacher rows, MxSxV.

    t = softmax(teacher / T + offset), without a gradient. Float32.
    """
    student_MxSxZ = student_MxSxZ.astype(jnp.float32) / STUDENT_TEMPERATURE
    target_MxVxZ = target_probabilities(teacher_MxVxZ, offset_Z, temperature)
    log_sum_MxS = jax.nn.logsumexp(student_MxSxZ, axis=-1)
    # The targets of a row sum to 1, so that the log-sum-exp is counted once.
    mean_MxSxV = jnp.einsum("msz,mvz->msv", student_MxSxZ, target_MxVxZ, precision=jax.lax.Precision.HIGHEST)
    return log_sum_MxS[..., None] - mean_MxSxV


def target_probabilities(
    teacher_xZ: jax.Array, offset_Z: jax.Array, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """softmax(teacher / T + offset) over the last axis, float32, without a gradient."""
    shape = (1,) * (teacher_xZ.ndim - 1) + offset_Z.shape
    scaled_xZ = teacher_xZ.astype(jnp.float32) / temperature + offset_Z.reshape(shape)
    return jax.lax.stop_gradient(jax.nn.softmax(scaled_xZ, axis=-1))


def koleo(x_GxMxD: jax.Array, is_row_GxM: jax.Array) -> jax.Array:
    """-log of the distance of each unit vector to its nearest neighbour in its group, GxM (arXiv:1806.03198).

    As in DINOv2's code: the neighbour has the largest dot product, 1e-8 is added to every coordinate of the
    difference (torch's PairwiseDistance) and to the distance, and the gradient flows through both. Float32:
    in float16, 1e-8 would be 0. Rows for which is_row_GxM is False are no neighbours, and have 0; so has a
    row that is alone in its group.
    """
    x_GxMxD = x_GxMxD.astype(jnp.float32)
    dots_GxMxM = jnp.einsum("gmd,gnd->gmn", x_GxMxD, x_GxMxD, precision=jax.lax.Precision.HIGHEST)
    is_other_GxMxM = is_row_GxM[:, None, :] & ~jnp.eye(x_GxMxD.shape[1], dtype=bool)[None]
    nearest_GxM = jnp.where(is_other_GxMxM, jax.lax.stop_gradient(dots_GxMxM), -jnp.inf).argmax(axis=-1)
    neighbour_GxMxD = jnp.take_along_axis(x_GxMxD, nearest_GxM[..., None], axis=1)
    has_other_GxM = is_row_GxM & is_other_GxMxM.any(axis=-1)
    gap_GxMxD = x_GxMxD - neighbour_GxMxD + KOLEO_EPS
    gap_GxMxD = jnp.where(has_other_GxM[..., None], gap_GxMxD, 1.0)
    distance_GxM = jnp.sqrt(jnp.square(gap_GxMxD).sum(axis=-1))
    return jnp.where(has_other_GxM, -jnp.log(distance_GxM + KOLEO_EPS), 0.0)
