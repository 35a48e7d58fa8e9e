"""Edits: functions that change inner values of the forward pass of a ViT, for interventions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _same(block: int, values: jax.Array) -> jax.Array:
    return values


def _same_patches(patches_BxPxD: jax.Array) -> jax.Array:
    return patches_BxPxD


def _same_pair(block: int, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    return keys, values


class Edits(NamedTuple):
    """Functions of the index of a block and of its inner values, which they return changed.

    `patches` has no index of a block.

    They are called during tracing and use jax.numpy. They keep shapes, except that `keys_values` may append
    keys, which all queries see. The defaults change nothing.
    """

    patches: Callable[[jax.Array], jax.Array] = _same_patches  # embeddings, before mask token and positions
    resid: Callable[[int, jax.Array], jax.Array] = _same  # BxTxD before block i; i = depth: after the last
    hidden: Callable[[int, jax.Array], jax.Array] = _same  # hidden_BxTxF, activations of the MLP
    keys_values: Callable[[int, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = _same_pair  # BxTxNxK


NO_EDITS = Edits()


def append_key(
    k_BxTxNxK: jax.Array, v_BxTxNxK: jax.Array, key_NxK: jax.Array, value_NxK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(keys, values), each [B, T + 1, N, K], with one key and its value appended, the same for all images."""

    def append(x_BxTxNxK: jax.Array, more_NxK: jax.Array) -> jax.Array:
        more = jnp.broadcast_to(more_NxK[None, None], (x_BxTxNxK.shape[0], 1, *more_NxK.shape))
        return jnp.concatenate([x_BxTxNxK, more.astype(x_BxTxNxK.dtype)], axis=1)

    return append(k_BxTxNxK, key_NxK), append(v_BxTxNxK, value_NxK)
