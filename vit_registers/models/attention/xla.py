"""Softmax attention in plain XLA ops, with a backward pass that is written out to store little for it.

Differentiated by JAX, the softmax would store its weights twice: in float32 for its own gradient, and in the
dtype of the values for their product. Here they are stored once, in the dtype of the values; with
model.remat="attention" they are computed again from the arrays named in KEPT, as in flash attention
(arXiv:2205.14135).

On a TPU in bfloat16 no logits are stored in memory. XLA can fuse work into the output of a product only if
nothing else reads that output, and a softmax reads its logits twice: for the maximum of each row, and to
subtract it. So the product is computed twice. The maximum may come from rounded logits, because any number
near it gives the same result; the logits in the exponential, the sums and the gradient of the logits are
float32. Products take operands in the dtype of the values and accumulate in float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from vit_registers.models.attention.mesh import on_own_share, platform

# The names of the arrays that the backward pass requires besides q, k and v.
KEPT = ("attention_out", "attention_top", "attention_sum")

# Both float32 and bfloat16 represent it exactly, so it is the same in rounded logits.
_MASKED = float(jnp.finfo(jnp.bfloat16).min)

_FEW_TOKENS = 32  # see _is_heads_first


def masked_logits(
    q_BxTxNxK: jax.Array,
    k_BxSxNxK: jax.Array,
    mask_TxS: np.ndarray | None,
    bias_NxTxS: np.ndarray | None,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """logits_BxNxTxS of `dtype`: q k^T / sqrt(K) + bias, and bfloat16's lowest number where masked.

    `jnp.asarray` precedes reshaping, so that all blocks of a compiled program share one mask and bias.
    """
    logits_BxNxTxS = _by_keys(q_BxTxNxK, k_BxSxNxK, dtype)
    logits_BxNxTxS *= jnp.asarray(1.0 / math.sqrt(q_BxTxNxK.shape[-1]), dtype)
    if bias_NxTxS is not None:
        logits_BxNxTxS += jnp.asarray(bias_NxTxS)[None].astype(dtype)
    if mask_TxS is not None:
        mask_1x1xTxS = jnp.asarray(mask_TxS)[None, None]
        logits_BxNxTxS = jnp.where(mask_1x1xTxS, logits_BxNxTxS, jnp.asarray(_MASKED, dtype))
    return logits_BxNxTxS


def attend_xla(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v. Runs on any device; has reverse-mode gradients only."""
    dtype = v_BxTxNxK.dtype

    def weights(q: jax.Array, k: jax.Array, top_BxNxT: jax.Array) -> jax.Array:
        """exp(logits - top), not divided by their sum, in the dtype of the values."""
        logits_BxNxTxS = _keys_last(masked_logits(q, k, mask_TxT, bias_NxTxT))
        return _keys_last(jnp.exp(logits_BxNxTxS - top_BxNxT[..., None]).astype(dtype))

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        rough = dtype if platform() == "tpu" else jnp.float32  # elsewhere XLA merges the two products
        logits_BxNxTxS = _keys_last(masked_logits(q, k, mask_TxT, bias_NxTxT, rough))
        top_BxNxT = checkpoint_name(logits_BxNxTxS.max(axis=-1).astype(jnp.float32), KEPT[1])
        weights_BxNxTxS = weights(q, k, top_BxNxT)
        sum_BxNxT = checkpoint_name(weights_BxNxTxS.astype(jnp.float32).sum(axis=-1), KEPT[2])
        # Divided by the sum after the product, where a row has K numbers instead of S.
        out_BxTxNxK = _over_keys(weights_BxNxTxS, v, jnp.float32)
        out_BxTxNxK = checkpoint_name((out_BxTxNxK / _by_token(sum_BxNxT)).astype(dtype), KEPT[0])
        return out_BxTxNxK, (q, k, v, out_BxTxNxK, weights_BxNxTxS, sum_BxNxT)

    def backward(residuals: tuple[jax.Array, ...], d_out_BxTxNxK: jax.Array) -> tuple[jax.Array, ...]:
        # The weights are not divided by their sum; the factors beside them are.
        q, k, v, out_BxTxNxK, weights_BxNxTxS, sum_BxNxT = residuals
        d_out_BxTxNxK = d_out_BxTxNxK.astype(jnp.float32)
        # The softmax subtracts from the gradient of each row its weighted mean.
        mean_BxNxT = (d_out_BxTxNxK * out_BxTxNxK).sum(axis=-1).swapaxes(1, 2)
        d_out_BxTxNxK, mean_BxNxT = d_out_BxTxNxK / _by_token(sum_BxNxT), mean_BxNxT / sum_BxNxT
        d_out_BxTxNxK = d_out_BxTxNxK.astype(dtype)
        d_v = _over_queries(weights_BxNxTxS, d_out_BxTxNxK)
        d_weights_BxNxTxS = _keys_last(_by_keys(d_out_BxTxNxK, v, jnp.float32))
        d_logits_BxNxTxS = weights_BxNxTxS * (d_weights_BxNxTxS - mean_BxNxT[..., None])
        d_logits_BxNxTxS = _keys_last((d_logits_BxNxTxS * (1.0 / math.sqrt(q.shape[-1]))).astype(dtype))
        d_q = _over_keys(d_logits_BxNxTxS, k)
        d_k = _over_queries(d_logits_BxNxTxS, q)
        return d_q, d_k, d_v

    # Defined in each call: as a closure variable, the mask is a constant of both passes and not a residual.
    attend = jax.custom_vjp(lambda q, k, v: forward(q, k, v)[0])
    attend.defvjp(forward, backward)
    return attend(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK)


def _is_heads_first(num_tokens: int) -> bool:
    """Whether operands of products are transposed to BxNxTxK first.

    The products of XLA's CPU back end take a quarter of the time then from some 24 images of 200 tokens on,
    and less time for all other sizes but the smallest.
    """
    return platform() == "cpu" and num_tokens >= _FEW_TOKENS


def _by_keys(q_BxTxNxK: jax.Array, k_BxSxNxK: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The products of queries and keys, BxNxTxS."""
    if not _is_heads_first(k_BxSxNxK.shape[1]):
        return jnp.einsum("btnk,bsnk->bnts", q_BxTxNxK, k_BxSxNxK, preferred_element_type=dtype)
    q_BxNxTxK, k_BxNxSxK = q_BxTxNxK.swapaxes(1, 2), k_BxSxNxK.swapaxes(1, 2)
    return jnp.einsum("bntk,bnsk->bnts", q_BxNxTxK, k_BxNxSxK, preferred_element_type=dtype)


def _over_keys(
    weights_BxNxTxS: jax.Array, x_BxSxNxK: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """The sums of x over keys by weight, BxTxNxK; of the dtype of x if `dtype` is None."""
    if not _is_heads_first(x_BxSxNxK.shape[1]):
        return jnp.einsum("bnts,bsnk->btnk", weights_BxNxTxS, x_BxSxNxK, preferred_element_type=dtype)
    x_BxNxSxK = x_BxSxNxK.swapaxes(1, 2)
    out_BxNxTxK = jnp.einsum("bnts,bnsk->bntk", weights_BxNxTxS, x_BxNxSxK, preferred_element_type=dtype)
    return out_BxNxTxK.swapaxes(1, 2)


def _over_queries(weights_BxNxTxS: jax.Array, x_BxTxNxK: jax.Array) -> jax.Array:
    """The sums of x over queries by weight, BxSxNxK."""
    if not _is_heads_first(weights_BxNxTxS.shape[-1]):
        return jnp.einsum("bnts,btnk->bsnk", weights_BxNxTxS, x_BxTxNxK)
    return jnp.einsum("bnts,bntk->bnsk", weights_BxNxTxS, x_BxTxNxK.swapaxes(1, 2)).swapaxes(1, 2)


def _keys_last(x_BxNxTxS: jax.Array) -> jax.Array:
    """x in the memory layout in which a TPU writes the output of products.

    By default XLA puts the batch in the lanes, which wastes none, and copies all arrays of this size in
    every block to do so: 14 % of the memory traffic of a ViT-S/16's step on a v5p.
    """
    return _laid_out(x_BxNxTxS, (0, 1, 2, 3), heads_axis=1)


def tokens_last(qkv_BxTxQxNxK: jax.Array) -> jax.Array:
    """qkv in the layout in which a TPU's products read q, k and v; by default XLA copies each twice."""
    return _laid_out(qkv_BxTxQxNxK, (2, 0, 3, 4, 1), heads_axis=3)


def _laid_out(x: jax.Array, major_to_minor: tuple[int, ...], heads_axis: int) -> jax.Array:
    if platform() != "tpu":
        return x
    layout = Layout(major_to_minor=major_to_minor)
    return on_own_share(lambda x: with_layout_constraint(x, layout), x, heads_axis)


def _by_token(x_BxNxT: jax.Array) -> jax.Array:
    return x_BxNxT.swapaxes(1, 2)[..., None]
