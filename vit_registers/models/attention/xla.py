"""Softmax attention in plain XLA ops, whose backward pass is written out so that little is kept for it.

Differentiated by JAX, the softmax would keep its weights twice: in float32 for itself, and in the dtype of
the values for the product with them. Here they are kept once, in the dtype of the values; or, with
model.remat="attention", computed again from what KEPT names, as flash attention does (arXiv:2205.14135).

On a TPU in bfloat16 no logits are ever in memory. XLA can work on a product's result on its way out, but only
if nothing else wants it, and a softmax wants its logits twice: for the maximum of each row, and to take it
off. So there are two products, one for each. The maximum may come from a rounded one, as any number near it
serves; the logits that enter the exponential, the sums and the gradient of the logits are float32. Products
take operands of the dtype of the values and add up in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from vit_registers.models.attention.mesh import on_own_share, platform

# The names of what the backward pass cannot do without, beside q, k and v.
KEPT = ("attention_out", "attention_top", "attention_sum")

# Float32 and bfloat16 have it both, so that it is the same in rounded logits.
_MASKED = float(jnp.finfo(jnp.bfloat16).min)


def masked_logits(
    q_BxTxNxK: jax.Array,
    k_BxSxNxK: jax.Array,
    mask_TxS: np.ndarray | None,
    bias_NxTxS: np.ndarray | None,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """q k^T / sqrt(K) + bias as logits_BxNxTxS of `dtype`, and bfloat16's lowest number where masked.

    `jnp.asarray` comes before any reshaping, so that all blocks share one copy of mask and bias in the
    compiled program.
    """
    logits_BxNxTxS = jnp.einsum("btnk,bsnk->bnts", q_BxTxNxK, k_BxSxNxK, preferred_element_type=dtype)
    logits_BxNxTxS *= jnp.asarray(1.0 / math.sqrt(q_BxTxNxK.shape[-1]), dtype)
    if bias_NxTxS is not None:
        logits_BxNxTxS += jnp.asarray(bias_NxTxS)[None].astype(dtype)
    if mask_TxS is not None:
        mask_1x1xTxS = jnp.asarray(mask_TxS)[None, None]
        logits_BxNxTxS = jnp.where(mask_1x1xTxS, logits_BxNxTxS, jnp.asarray(_MASKED, dtype))
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

    def weights(q: jax.Array, k: jax.Array, top_BxNxT: jax.Array) -> jax.Array:
        """exp(logits - top), not divided by their sum, in the dtype of the values."""
        logits_BxNxTxS = _keys_last(masked_logits(q, k, mask_TxS, bias_NxTxS))
        return _keys_last(jnp.exp(logits_BxNxTxS - top_BxNxT[..., None]).astype(dtype))

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple:
        rough = dtype if platform() == "tpu" else jnp.float32  # elsewhere XLA makes one of the two products
        logits_BxNxTxS = _keys_last(masked_logits(q, k, mask_TxS, bias_NxTxS, rough))
        top_BxNxT = checkpoint_name(logits_BxNxTxS.max(axis=-1).astype(jnp.float32), KEPT[1])
        weights_BxNxTxS = weights(q, k, top_BxNxT)
        sum_BxNxT = checkpoint_name(weights_BxNxTxS.astype(jnp.float32).sum(axis=-1), KEPT[2])
        # Divided by their sum afterwards, when there are K numbers a row instead of S.
        out_BxTxNxK = jnp.einsum("bnts,bsnk->btnk", weights_BxNxTxS, v, preferred_element_type=jnp.float32)
        out_BxTxNxK = checkpoint_name((out_BxTxNxK / _by_token(sum_BxNxT)).astype(dtype), KEPT[0])
        log_sum_BxNxT = top_BxNxT + jnp.log(sum_BxNxT)
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

    XLA would rather have the batch in the lanes, of which it wastes none, and copies all arrays of this
    size in every block to have it so: 14 % of the traffic of a ViT-S/16's step on a v5p.
    """
    return _laid_out(x_BxNxTxS, (0, 1, 2, 3), heads_axis=1)


def tokens_last(qkv_BxTxQxNxK: jax.Array) -> jax.Array:
    """The same, in the layout in which a TPU's products over heads take q, k and v.

    Left to itself, XLA copies each of them twice: to take it out of the three, and to turn it round.
    """
    return _laid_out(qkv_BxTxQxNxK, (2, 0, 3, 4, 1), heads_axis=3)


def _laid_out(x: jax.Array, major_to_minor: tuple[int, ...], heads_axis: int) -> jax.Array:
    if platform() != "tpu":
        return x
    layout = Layout(major_to_minor=major_to_minor)
    return on_own_share(lambda x: with_layout_constraint(x, layout), x, heads_axis)


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
