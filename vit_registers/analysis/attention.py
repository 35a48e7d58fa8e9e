"""Attention maps, recomputed from queries and keys."""

import numpy as np

from vit_registers.models.attention import attention_weights
from vit_registers.models.tokens import TokenLayout


def attention_maps(
    q_BxTxNxK: np.ndarray,
    k_BxTxNxK: np.ndarray,
    layout: TokenLayout,
    *,
    tokens: slice,
    mask_TxT: np.ndarray | None,
    bias_NxTxT: np.ndarray | None,
) -> np.ndarray:
    """Where the query `tokens` look among the patches: [batch, heads, tokens, rows, columns], float32.

    Weights of the full softmax, so a map sums to the share of attention that goes to patches, at most 1.
    """
    weights = attention_weights(q_BxTxNxK, k_BxTxNxK, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
    maps = np.asarray(weights)[:, :, tokens, layout.patches]
    return maps.reshape(*maps.shape[:3], *layout.patch_grid)
