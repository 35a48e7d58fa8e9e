"""The only file of the analysis that runs a model: images -> arrays."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from vit_registers.data.batch import normalize
from vit_registers.models.vit import ViT


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionInputs:
    """What the attention of one block sees, and what the model answers; float32 numpy."""

    q_BxTxNxK: np.ndarray
    k_BxTxNxK: np.ndarray
    logits_BxY: np.ndarray | None  # None: the model has no head


def attention_inputs(
    model: ViT,
    image_BxHxWxC: np.ndarray,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    block: int = -1,
) -> AttentionInputs:
    """The queries and keys of one block for 8-bit images; the last block by default."""

    @nnx.jit
    def forward(model: ViT, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        out = model(normalize(image, mean=mean, std=std))
        return out.taps["q"][block], out.taps["k"][block], out.logits

    out = forward(model, image_BxHxWxC)
    q, k, logits = (None if x is None else np.asarray(x, np.float32) for x in out)
    return AttentionInputs(q_BxTxNxK=q, k_BxTxNxK=k, logits_BxY=logits)
