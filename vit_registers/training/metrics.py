"""Classification metrics as sums, which add up over batches, devices and hosts."""

import operator

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Sums:
    """Sums over the examples whose mask is True. Adding two gives those of both sets."""

    loss: jax.Array
    top1: jax.Array  # int32, how many have their label first
    top5: jax.Array  # int32, how many have it among the first five
    count: jax.Array  # int32

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(operator.add, self, other)

    def means(self) -> dict[str, float]:
        """loss, top1 and top5 as means over the examples, and how many there were."""
        count = int(self.count)
        mean = {k: float(getattr(self, k)) / max(count, 1) for k in ("loss", "top1", "top5")}
        return {**mean, "images": count}


def classification_sums(
    logits_BxY: jax.Array, label_B: jax.Array, mask_B: jax.Array, loss_B: jax.Array
) -> Sums:
    """Sums of one batch. A label's rank counts the classes with a higher logit, and ties before it."""
    num_classes = logits_BxY.shape[-1]
    own_Bx1 = jnp.take_along_axis(logits_BxY, label_B[:, None], axis=-1)
    is_before = jnp.arange(num_classes)[None] < label_B[:, None]
    rank_B = ((logits_BxY > own_Bx1) | ((logits_BxY == own_Bx1) & is_before)).sum(axis=-1)
    return Sums(
        loss=jnp.where(mask_B, loss_B, 0.0).sum(),
        top1=(mask_B & (rank_B < 1)).sum(dtype=jnp.int32),
        top5=(mask_B & (rank_B < 5)).sum(dtype=jnp.int32),
        count=mask_B.sum(dtype=jnp.int32),
    )
