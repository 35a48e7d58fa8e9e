"""Softmax attention under a static mask and bias: `attention_weights`, and the table of back ends, BACKENDS.

Masks and biases are numpy arrays and become constants of the compiled program. A back end is a function with
the signature of `attend_xla`, in a file with its name, whose docstring says where it applies. It raises
ConfigError during tracing if it does not support the inputs or the device. No back end knows of token groups.
"""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from vit_registers.models.attention.cudnn import attend_cudnn
from vit_registers.models.attention.mesh import platform
from vit_registers.models.attention.splash import attend_splash
from vit_registers.models.attention.xla import KEPT, attend_xla, masked_logits, tokens_last


def attention_weights(
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    *,
    mask_TxT: np.ndarray | None = None,
    bias_NxTxT: np.ndarray | None = None,
) -> jax.Array:
    """weights_BxNxTxT, float32: softmax(q k^T / sqrt(K) + bias) over the pairs that the mask allows.

    A masked pair has weight 0 exactly and passes no gradient. Every row of the mask must allow a token.
    """
    return jax.nn.softmax(masked_logits(q_BxTxNxK, k_BxTxNxK, mask_TxT, bias_NxTxT), axis=-1)


def open_to_more(
    mask_TxT: np.ndarray | None, bias_NxTxT: np.ndarray | None, num_keys: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(mask_TxS, bias_NxTxS) for S = `num_keys`: all queries see keys beyond the T tokens, without bias."""
    if mask_TxT is not None and num_keys > mask_TxT.shape[1]:
        mask_TxT = np.pad(mask_TxT, [(0, 0), (0, num_keys - mask_TxT.shape[1])], constant_values=True)
    if bias_NxTxT is not None and num_keys > bias_NxTxT.shape[2]:
        bias_NxTxT = np.pad(bias_NxTxT, [(0, 0), (0, 0), (0, num_keys - bias_NxTxT.shape[2])])
    return mask_TxT, bias_NxTxT


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "xla": attend_xla,
    "cudnn": attend_cudnn,
    "splash": attend_splash,
    "auto": attend_xla,  # unless attention_choice.py has chosen another one
}

# The back ends that store attention weights for the backward pass, unless `rematerialized`.
KEEP_WEIGHTS = ("xla", "auto")


def project(
    qkv: nnx.LinearGeneral, x_BxTxD: jax.Array, backend: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v, each BxTxNxK, by one projection, in the memory layout that the back end reads.

    On a GPU they are three products, with flat biases that are fused into them: slices of one product would
    be copied, and a bias of shape QxNxK read as an array of the size of the result.
    """
    if platform() != "gpu":
        return _split(qkv(x_BxTxD), backend)
    kernel_DxQxNxK, bias_QxNxK = qkv.kernel[...], None if qkv.bias is None else qkv.bias[...]
    x_BxTxD = x_BxTxD.astype(qkv.dtype)

    def one(i: int) -> jax.Array:
        kernel_DxF = kernel_DxQxNxK[:, i].reshape(len(kernel_DxQxNxK), -1).astype(qkv.dtype)
        out_BxTxF = x_BxTxD @ kernel_DxF
        if bias_QxNxK is not None:
            out_BxTxF += bias_QxNxK[i].reshape(1, 1, -1).astype(qkv.dtype)
        return out_BxTxF.reshape(*x_BxTxD.shape[:2], *kernel_DxQxNxK.shape[2:])

    return one(0), one(1), one(2)


def _split(qkv_BxTxQxNxK: jax.Array, backend: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    if backend in KEEP_WEIGHTS:
        qkv_BxTxQxNxK = tokens_last(qkv_BxTxQxNxK)
    q, k, v = (qkv_BxTxQxNxK[:, :, i] for i in range(3))
    return q, k, v


def rematerialized(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`attend`, one of KEEP_WEIGHTS, which computes the weights again in the backward pass."""
    return jax.checkpoint(attend, policy=jax.checkpoint_policies.save_only_these_names(*KEPT))
