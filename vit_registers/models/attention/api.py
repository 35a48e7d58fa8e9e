"""attend(q, k, v): softmax attention under a static mask and bias. Knows nothing of token groups.

Masks and biases are numpy arrays and become compile-time constants. A back end is a function with the
signature of `attend_xla`, listed in BACKENDS; each has a file attention_<name>.py, which says where it
applies. What a back end cannot do raises ConfigError when the model is traced.
"""

from collections.abc import Callable

import jax
import numpy as np

from vit_registers.models.attention.auto import FASTER, attend_auto
from vit_registers.models.attention.cudnn import attend_cudnn
from vit_registers.models.attention.mesh import platform
from vit_registers.models.attention.splash import attend_splash
from vit_registers.models.attention.structured import attend_structured
from vit_registers.models.attention.xla import KEPT, attend_xla, masked_logits, tokens_last


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
    return jax.nn.softmax(masked_logits(q_BxTxNxK, k_BxTxNxK, mask_TxT, bias_NxTxT), axis=-1)


def open_to_more(
    mask_TxT: np.ndarray | None, bias_NxTxT: np.ndarray | None, num_keys: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(mask_TxS, bias_NxTxS) for S keys, where those beyond the T tokens are open to all, without bias."""
    if mask_TxT is not None and num_keys > mask_TxT.shape[1]:
        mask_TxT = np.pad(mask_TxT, [(0, 0), (0, num_keys - mask_TxT.shape[1])], constant_values=True)
    if bias_NxTxT is not None and num_keys > bias_NxTxT.shape[2]:
        bias_NxTxT = np.pad(bias_NxTxT, [(0, 0), (0, 0), (0, num_keys - bias_NxTxT.shape[2])])
    return mask_TxT, bias_NxTxT


BACKENDS: dict[str, Callable[..., jax.Array]] = {
    "xla": attend_xla,
    "structured": attend_structured,
    "cudnn": attend_cudnn,
    "splash": attend_splash,
    "auto": attend_auto,
}

# Those that keep attention weights for the backward pass, if they are let.
KEEP_WEIGHTS = ("xla", "structured", "auto")


def split(qkv_BxTxQxNxK: jax.Array, backend: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q, k and v, each BxTxNxK, out of one array, which is laid out as the back end will want them."""
    if backend in KEEP_WEIGHTS and not (backend == "auto" and platform() in FASTER):
        qkv_BxTxQxNxK = tokens_last(qkv_BxTxQxNxK)
    q, k, v = (qkv_BxTxQxNxK[:, :, i] for i in range(3))
    return q, k, v


def lean(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`attend`, of KEEP_WEIGHTS, with the weights computed again for the backward pass instead of kept."""
    return jax.checkpoint(attend, policy=jax.checkpoint_policies.save_only_these_names(*KEPT))
