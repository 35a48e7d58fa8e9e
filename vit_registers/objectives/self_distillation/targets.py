"""The teacher's targets: probabilities over prototypes, sharpened and kept from collapsing.

Both kinds are softmax(logits / T + offset_Z) with an offset per prototype: minus the centre / T for
centring (arXiv:2104.14294), and the logarithm of the prototypes' scales for Sinkhorn-Knopp
(arXiv:2006.09882). The last normalisation of Sinkhorn-Knopp makes every row sum to 1, as a softmax does, so
the scales of the rows are not needed. Axis letters: heads.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SINKHORN_ITERATIONS = 3
CENTRE_MOMENTUM = 0.9


def centre_offset(centre_Z: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    """offset_Z for centring: softmax((logits - centre) / T)."""
    return -centre_Z / temperature


def update_centre(
    centre_Z: jax.Array, total_Z: jax.Array, count: jax.Array, momentum: float = CENTRE_MOMENTUM
) -> jax.Array:
    """momentum * centre + (1 - momentum) * total / count, the mean of the teacher's logits over rows.

    Without rows, the centre does not change.
    """
    mean_Z = total_Z / jnp.maximum(count, 1)
    return jnp.where(count > 0, momentum * centre_Z + (1 - momentum) * mean_Z, centre_Z)


def sinkhorn_offset(
    logits_of: Callable[[Any], jax.Array],
    chunks: Any,
    is_row_CxM: jax.Array,
    temperature: jax.typing.ArrayLike,
    iterations: int = SINKHORN_ITERATIONS,
) -> jax.Array:
    """offset_Z for Sinkhorn-Knopp over all rows for which is_row_CxM is True.

    `chunks` has a leading axis of chunks; logits_of(chunk) are the logits MxZ of one chunk. They are
    computed again in every iteration, so that only those of one chunk are in memory. All is in logarithms,
    which is exact where the released code overflows. With B rows and Z prototypes, an iteration makes every
    prototype's sum 1 / Z and then every row's sum 1 / B.
    """
    num_rows = jnp.maximum(is_row_CxM.sum(), 1)

    def scaled(chunk: Any, is_row_M: jax.Array) -> jax.Array:
        value_MxZ = logits_of(chunk).astype(jnp.float32) / temperature
        return jnp.where(is_row_M[:, None], value_MxZ, -jnp.inf)

    def column_sums(offset_Z: jax.Array | None) -> jax.Array:
        """log of the sum over rows of exp(logits / T) times the rows' scales for that offset."""

        def body(total_Z: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
            chunk, is_row_M = inputs
            value_MxZ = scaled(chunk, is_row_M)
            if offset_Z is not None:
                row_M = jax.nn.logsumexp(value_MxZ + offset_Z[None], axis=1)
                row_M = jnp.where(is_row_M, row_M + jnp.log(num_rows), 0.0)
                value_MxZ -= row_M[:, None]
            return jnp.logaddexp(total_Z, jax.nn.logsumexp(value_MxZ, axis=0)), None

        num_prototypes = jax.eval_shape(logits_of, jax.tree.map(lambda x: x[0], chunks)).shape[-1]
        first_Z = jnp.full((num_prototypes,), -jnp.inf, jnp.float32)
        return jax.lax.scan(body, first_Z, (chunks, is_row_CxM))[0]

    offset_Z = None
    for _ in range(iterations):
        total_Z = column_sums(offset_Z)
        offset_Z = -total_Z - jnp.log(total_Z.size)
    assert offset_Z is not None, iterations
    return jnp.where(is_row_CxM.any(), offset_Z, 0.0)
