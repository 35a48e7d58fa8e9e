"""Attention by JAX's splash kernel, for TPUs, which skips blocks of the mask that are empty.

Not yet run on a TPU: interpreted on CPU, and compiled for TPUs ahead of time.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.errors import ConfigError
from vit_registers.models.attention.mesh import over_mesh, platform

_LANES = 128  # lengths are padded to a multiple of it
_MAX_BLOCK = 512


def attend_splash(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """out_BxTxNxK in the dtype of v. Raises ConfigError for a bias, and on other platforms than TPUs."""
    if bias_NxTxT is not None:
        raise ConfigError(
            "model.attention='splash' supports no attention bias: use model.attention='xla', "
            "or other positions than model.positions='alibi2d'"
        )
    if (where := platform()) != "tpu":
        raise ConfigError(
            f"model.attention='splash' runs on TPUs, and this is a {where}: use model.attention='xla'"
        )
    attend = functools.partial(attend_blocks, mask_TxT=mask_TxT, is_interpreted=False)
    return over_mesh(attend, q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, None)


def attend_blocks(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    bias_NxTxT: None = None,
    *,
    mask_TxT: np.ndarray | None,
    is_interpreted: bool,
) -> jax.Array:
    """out_BxTxNxK of the kernel over lengths padded to blocks. `is_interpreted`: on any device, slowly.

    Keys of the padding are masked. Queries of the padding see the same keys as the last query: a query
    without keys would compute 0 / 0, also in the gradients of all keys.
    """
    # Imports Mosaic, which only this back end requires.
    from jax.experimental.pallas.ops.tpu import splash_attention as tpu

    assert bias_NxTxT is None
    num_queries, num_keys = q_BxTxNxK.shape[1], k_BxTxNxK.shape[1]
    if mask_TxT is None:
        mask_TxT = np.ones((num_queries, num_keys), bool)
    more_queries, more_keys = -num_queries % _LANES, -num_keys % _LANES
    mask_TxT = np.pad(mask_TxT, [(0, 0), (0, more_keys)], constant_values=False)
    mask_TxT = np.pad(mask_TxT, [(0, more_queries), (0, 0)], mode="edge")
    block_q, block_kv = (_block_size(size) for size in mask_TxT.shape)
    sizes = tpu.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        use_fused_bwd_kernel=True,  # one pass for q, k and v; no partial sums with one block of keys
    )
    masks = tpu.MultiHeadMask([tpu.NumpyMask(mask_TxT)] * q_BxTxNxK.shape[2])
    kernel = tpu.make_splash_mha(
        masks, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=is_interpreted
    )
    scale = 1.0 / math.sqrt(q_BxTxNxK.shape[-1])
    q_BxTxNxK = (q_BxTxNxK * scale).astype(v_BxTxNxK.dtype)
    out_BxNxTxK = jax.vmap(kernel)(
        _by_head(q_BxTxNxK, more_queries), _by_head(k_BxTxNxK, more_keys), _by_head(v_BxTxNxK, more_keys)
    )
    assert isinstance(out_BxNxTxK, jax.Array)  # other options of the kernel also return residuals
    return out_BxNxTxK[:, :, :num_queries].swapaxes(1, 2)


def _by_head(x_BxTxNxK: jax.Array, more: int) -> jax.Array:
    return jnp.pad(x_BxTxNxK.swapaxes(1, 2), [(0, 0), (0, 0), (0, more), (0, 0)])


def _block_size(size: int) -> int:
    """The largest multiple of 128, at most 512, that divides `size`."""
    return max(block for block in range(_LANES, _MAX_BLOCK + 1, _LANES) if size % block == 0)
