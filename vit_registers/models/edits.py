"""Changes of the forward pass between the parts of a model: how interventions reach into a ViT."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _same(block: int, values: jax.Array) -> jax.Array:
    return values


def _same_pair(block: int, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return keys, values


class Edits(NamedTuple):
    """Functions of the index of a block and of what flows there; the next part gets what they return.

    They are called while jit traces, so they are jax.numpy; shapes stay, except that `keys_values` may append
    keys, which every query then sees. As they are given here they change nothing.
    """

    resid: Callable[[int, jax.Array], jax.Array] = _same  # resid_BxTxD before block i; i = depth: after all
    hidden: Callable[[int, jax.Array], jax.Array] = _same  # hidden_BxTxF, the MLP's activations
    keys_values: Callable[[int, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = _same_pair  # BxTxNxK


NO_EDITS = Edits()


def append_key(
    k_BxTxNxK: jax.Array, v_BxTxNxK: jax.Array, key_NxK: jax.Array, value_NxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values with one more, the same for all images, at the end: [B, T + 1, N, K] each."""

    def append(x_BxTxNxK: jax.Array, more_NxK: jax.Array) -> jax.Array:
        more = jnp.broadcast_to(more_NxK[None, None], (x_BxTxNxK.shape[0], 1, *more_NxK.shape))
        return jnp.concatenate([x_BxTxNxK, more.astype(x_BxTxNxK.dtype)], axis=1)

    return append(k_BxTxNxK, key_NxK), append(v_BxTxNxK, value_NxK)
