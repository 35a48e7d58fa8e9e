"""attend(q, k, v): softmax attention under a static mask and bias. Knows nothing of token groups.

Masks and biases are numpy arrays and become compile-time constants; `jnp.asarray` before any
reshaping lets all blocks share one copy of them in the compiled program. A back end is a function with
the signature of `attend_xla`, listed in BACKENDS.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def attention_weights(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) over the pairs that the mask allows: weights_BxNxTxT, float32.

    A masked pair has weight 0 exactly and passes no gradient. Every row of the mask must allow a token.
    """
    scale = 1.0 / math.sqrt(q_BxTxNxK.shape[-1])
    logits_BxNxTxT = jnp.einsum(
        "btnk,bsnk->bnts", q_BxTxNxK * scale, k_BxTxNxK, preferred_element_type=jnp.float32
    )
    if bias_NxTxT is not None:
        logits_BxNxTxT += jnp.asarray(bias_NxTxT)[None]
    if mask_TxT is not None:
        mask_1x1xTxT = jnp.asarray(mask_TxT)[None, None]
        logits_BxNxTxT = jnp.where(mask_1x1xTxT, logits_BxNxTxT, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits_BxNxTxT, axis=-1)


def open_to_more(
    mask_TxT: np.ndarray | None, bias_NxTxT: np.ndarray | None, num_keys: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(mask_TxS, bias_NxTxS) for S keys, where those beyond the T tokens are open to all, without bias."""
    if mask_TxT is not None and num_keys > mask_TxT.shape[1]:
        mask_TxT = np.pad(mask_TxT, [(0, 0), (0, num_keys - mask_TxT.shape[1])], constant_values=True)
    if bias_NxTxT is not None and num_keys > bias_NxTxT.shape[2]:
        bias_NxTxT = np.pad(bias_NxTxT, [(0, 0), (0, 0), (0, num_keys - bias_NxTxT.shape[2])])
    return mask_TxT, bias_NxTxT


def attend_xla(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v; logits and softmax in float32. Plain XLA."""
    weights_BxNxTxT = attention_weights(q_BxTxNxK, k_BxTxNxK, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    return jnp.einsum("bnts,bsnk->btnk", weights_BxNxTxT.astype(v_BxTxNxK.dtype), v_BxTxNxK)


BACKENDS: dict[str, Callable[..., jax.Array]] = {"xla": attend_xla}
