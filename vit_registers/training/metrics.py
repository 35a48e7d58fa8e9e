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
    logits_BxY: jax.Array, label_BxK: jax.Array, mask_B: jax.Array, loss_B: jax.Array
) -> Sums:
    """Sums of one batch, where any of the labels of an example is right; -1 is none.

    An example without any label does not count (arXiv:2006.07159, section 4). A label's rank counts the
    classes with a higher logit, and ties before it.
    """
    num_classes = logits_BxY.shape[-1]
    label_BxKx1 = label_BxK[..., None]
    own_BxKx1 = jnp.take_along_axis(logits_BxY[:, None], jnp.maximum(label_BxKx1, 0), axis=-1)
    logits_Bx1xY = logits_BxY[:, None]
    is_before_BxKxY = jnp.arange(num_classes)[None, None] < label_BxKx1
    is_ahead_BxKxY = (logits_Bx1xY > own_BxKx1) | ((logits_Bx1xY == own_BxKx1) & is_before_BxKxY)
    is_label_BxK = label_BxK >= 0
    rank_B = jnp.where(is_label_BxK, is_ahead_BxKxY.sum(axis=-1), num_classes).min(axis=-1)
    mask_B &= is_label_BxK.any(axis=-1)
    return Sums(
        loss=jnp.where(mask_B, loss_B, 0.0).sum(),
        top1=(mask_B & (rank_B < 1)).sum(dtype=jnp.int32),
        top5=(mask_B & (rank_B < 5)).sum(dtype=jnp.int32),
        count=mask_B.sum(dtype=jnp.int32),
    )
