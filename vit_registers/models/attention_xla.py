"""Softmax attention in plain XLA ops, whose backward pass is written out so that little is kept for it.

Differentiated by JAX, the softmax would keep its weights twice: in float32 for itself, and in the dtype of
the values for the product with them. Here they are kept once, in the dtype of the values. Computing them
again instead, as flash attention does (arXiv:2205.14135), takes a quarter less memory and 11 % more traffic,
by the compiler's estimate for a v5p.

Logits, their maximum, their sum and the gradient of the logits are float32; products take operands of the
dtype of the values and add up in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from vit_registers.models.attention_mesh import on_own_share, platform


def masked_logits(
    q_BxTxNxK: jax.Array, k_BxSxNxK: jax.Array, mask_TxS: np.ndarray | None, bias_NxTxS: np.ndarray | None
) -> jax.Array:
    """q k^T / sqrt(K) + bias as logits_BxNxTxS, float32, and float32's lowest number where masked.

    `jnp.asarray` comes before any reshaping, so that all blocks share one copy of mask and bias in the
    compiled program.
    """
    logits_BxNxTxS = jnp.einsum(
        "btnk,bsnk->bnts", q_BxTxNxK, k_BxSxNxK, preferred_element_type=jnp.float32
    ) * (1.0 / math.sqrt(q_BxTxNxK.shape[-1]))
    if bias_NxTxS is not None:
        logits_BxNxTxS += jnp.asarray(bias_NxTxS)[None]
    if mask_TxS is not None:
        mask_1x1xTxS = jnp.asarray(mask_TxS)[None, None]
        logits_BxNxTxS = jnp.where(mask_1x1xTxS, logits_BxNxTxS, jnp.finfo(jnp.float32).min)
    return logits_BxNxTxS


def attend_with_log_sum(
    q_BxTxNxK: jax.Array,
    k_BxSxNxK: jax.Array,
    v_BxSxNxK: jax.Array,
    *,
    mask_TxS: np.ndarray | None,
    bias_NxTxS: np.ndarray | None,
) -> tuple[jax.Array, jax.Array]:
    """(out_BxTxNxK in the dtype of v, log_sum_BxNxT float32: log sum exp of each row of the logits).

    By the log sums, the outputs over several sets of keys can be joined to the one over all of them.
    Reverse mode only.
    """
    dtype = v_BxSxNxK.dtype

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        logits_BxNxTxS = _keys_last(masked_logits(q, k, mask_TxS, bias_NxTxS))
        top_BxNxTx1 = logits_BxNxTxS.max(axis=-1, keepdims=True)
        weights_BxNxTxS = jnp.exp(logits_BxNxTxS - top_BxNxTx1)
        sum_BxNxT = weights_BxNxTxS.sum(axis=-1)
        weights_BxNxTxS = _keys_last(weights_BxNxTxS.astype(dtype))
        # Divided by their sum afterwards, when there are K numbers a row instead of S.
        out_BxTxNxK = jnp.einsum("bnts,bsnk->btnk", weights_BxNxTxS, v, preferred_element_type=jnp.float32)
        out_BxTxNxK = (out_BxTxNxK / _by_token(sum_BxNxT)).astype(dtype)
        log_sum_BxNxT = top_BxNxTx1[..., 0] + jnp.log(sum_BxNxT)
        return (out_BxTxNxK, log_sum_BxNxT), (q, k, v, out_BxTxNxK, weights_BxNxTxS, sum_BxNxT)

    def backward(residuals: tuple, gradients: tuple) -> tuple:
        # The weights are not divided by their sum: what they multiply is.
        q, k, v, out_BxTxNxK, weights_BxNxTxS, sum_BxNxT = residuals
        d_out_BxTxNxK, d_log_sum_BxNxT = gradients
        d_out_BxTxNxK = d_out_BxTxNxK.astype(jnp.float32)
        # What the softmax takes off the gradient of each row, its weighted mean.
        mean_BxTxN = (d_out_BxTxNxK * out_BxTxNxK).sum(axis=-1)
        mean_BxNxT = mean_BxTxN.swapaxes(1, 2) - d_log_sum_BxNxT
        d_out_BxTxNxK, mean_BxNxT = d_out_BxTxNxK / _by_token(sum_BxNxT), mean_BxNxT / sum_BxNxT
        d_out_BxTxNxK = d_out_BxTxNxK.astype(dtype)
        d_v = jnp.einsum("bnts,btnk->bsnk", weights_BxNxTxS, d_out_BxTxNxK)
        d_weights_BxNxTxS = _keys_last(
            jnp.einsum("btnk,bsnk->bnts", d_out_BxTxNxK, v, preferred_element_type=jnp.float32)
        )
        d_logits_BxNxTxS = weights_BxNxTxS * (d_weights_BxNxTxS - mean_BxNxT[..., None])
        d_logits_BxNxTxS = _keys_last((d_logits_BxNxTxS * (1.0 / math.sqrt(q.shape[-1]))).astype(dtype))
        d_q = jnp.einsum("bnts,bsnk->btnk", d_logits_BxNxTxS, k)
        d_k = jnp.einsum("bnts,btnk->bsnk", d_logits_BxNxTxS, q)
        return d_q, d_k, d_v

    # Made anew in each call: closed over, the mask stays a constant of both passes and is not kept.
    attend = jax.custom_vjp(lambda q, k, v: forward(q, k, v)[0])
    attend.defvjp(forward, backward)
    return attend(q_BxTxNxK, k_BxSxNxK, v_BxSxNxK)


def _keys_last(x_BxNxTxS: jax.Array) -> jax.Array:
    """The same, in the layout in which a TPU's products come out.

    XLA would rather have the batch in the lanes, of which it wastes none, and copies all four arrays of this
    size in every block to have it so: 14 % of the traffic of a ViT-S/16's step on a v5p.
    """
    if platform() != "tpu":
        return x_BxNxTxS
    return on_own_share(lambda x: with_layout_constraint(x, Layout(major_to_minor=(0, 1, 2, 3))), x_BxNxTxS)


def _by_token(x_BxNxT: jax.Array) -> jax.Array:
    return x_BxNxT.swapaxes(1, 2)[..., None]


def attend_xla(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v, in plain XLA ops. Runs anywhere."""
    out_BxTxNxK, _ = attend_with_log_sum(
        q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, mask_TxS=mask_TxT, bias_NxTxS=bias_NxTxT
    )
    return out_BxTxNxK
