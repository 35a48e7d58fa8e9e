"""Attention by cuDNN's fused kernels, for NVIDIA GPUs. Not yet run on one."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.errors import ConfigError
from vit_registers.models.attention.mesh import over_mesh, platform

MAX_HEAD_SIZE = 128  # Hopper and later support 256


def attend_cudnn(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """Attention output out_BxTxNxK in the dtype of v, by cuDNN.

    Mask and bias become one bias in the dtype of q; a bfloat16 bias has 8 significant bits. Raises
    ConfigError on other platforms than GPUs, for other than 16-bit floats, and for unfit head sizes.
    """
    _check(q_BxTxNxK)
    attend = functools.partial(attend_even, mask_TxT=mask_TxT, implementation="cudnn")
    try:
        return over_mesh(attend, q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT)
    except (RuntimeError, NotImplementedError) as error:  # cuDNN is missing, or does not support this
        raise ConfigError(f"model.attention='cudnn': {error} Use model.attention='xla'") from error


def _check(q_BxTxNxK: jax.Array) -> None:
    where, cure = platform(), "use model.attention='xla'"
    if where != "gpu":
        raise ConfigError(f"model.attention='cudnn' runs on NVIDIA GPUs, and this is a {where}: {cure}")
    if q_BxTxNxK.dtype not in (jnp.bfloat16, jnp.float16):
        what = f"model.attention='cudnn' requires 16-bit floats, not {q_BxTxNxK.dtype}"
        raise ConfigError(f"{what}: set model.dtype='bfloat16', or {cure}")
    size = q_BxTxNxK.shape[-1]
    if size % 8 or size > MAX_HEAD_SIZE:
        raise ConfigError(
            f"model.attention='cudnn' requires a head size that is a multiple of 8 and at most "
            f"{MAX_HEAD_SIZE}, not {size} (width / heads): set model.num_heads, or {cure}"
        )


def attend_even(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    bias_NxTxT: jax.Array | np.ndarray | None,
    *,
    mask_TxT: np.ndarray | None,
    implementation: Literal["xla", "cudnn"],
) -> jax.Array:
    """out_BxTxNxK by jax.nn.dot_product_attention, with lengths padded to even ones.

    JAX does not differentiate cuDNN's attention over odd lengths. An odd length gets one more token: a key
    that is masked for all queries, and a query that sees all other keys, because a query without keys would
    compute 0 / 0. The output of that query is cut off.
    """
    (batch, num_queries, num_heads, _), num_keys = q_BxTxNxK.shape, k_BxTxNxK.shape[1]
    more_queries, more_keys = num_queries % 2, num_keys % 2
    lengths_B = None
    if more_keys and mask_TxT is None and bias_NxTxT is None:
        lengths_B = jnp.full((batch,), num_keys, jnp.int32)  # cheaper than a bias that masks the last key
    elif more_keys and mask_TxT is None:
        mask_TxT = np.ones((num_queries, num_keys), bool)
    mask_1xNxTxT = bias_1xNxTxT = None
    if mask_TxT is not None:
        mask_TxT = np.pad(mask_TxT, [(0, more_queries), (0, 0)], constant_values=True)
        padded_1x1xTxT = jnp.asarray(np.pad(mask_TxT, [(0, 0), (0, more_keys)]))[None, None]
        # JAX turns the mask into a bias and computes the gradient of that bias. Not all versions support
        # the gradient of a bias that heads share.
        mask_1xNxTxT = jnp.broadcast_to(padded_1x1xTxT, (1, num_heads, *padded_1x1xTxT.shape[2:]))
    if bias_NxTxT is not None:
        bias_NxTxT = jnp.asarray(bias_NxTxT, q_BxTxNxK.dtype)
        bias_1xNxTxT = jnp.pad(bias_NxTxT, [(0, 0), (0, more_queries), (0, more_keys)])[None]
    q_BxTxNxK = jnp.pad(q_BxTxNxK, [(0, 0), (0, more_queries), (0, 0), (0, 0)])
    k_BxTxNxK, v_BxTxNxK = (
        jnp.pad(x, [(0, 0), (0, more_keys), (0, 0), (0, 0)]) for x in (k_BxTxNxK, v_BxTxNxK)
    )
    out_BxTxNxK = jax.nn.dot_product_attention(
        q_BxTxNxK,
        k_BxTxNxK,
        v_BxTxNxK,
        bias=bias_1xNxTxT,
        mask=mask_1xNxTxT,
        key_value_seq_lengths=lengths_B,
        implementation=implementation,
    )
    return out_BxTxNxK[:, :num_queries]
