"""Classification metrics as sums, which add up over batches, devices and hosts."""

import math
import operator
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

MOST_CLASSES_WITHOUT_TOP5 = 5  # the first five of them are all


@struct.dataclass
class Sums:
    """Sums over the examples whose mask is True. Adding two gives those of both sets."""

    loss: jax.Array
    top1: jax.Array  # int32, how many have their label first
    top5: jax.Array | None  # int32, how many have it among the first five; None for five classes or fewer
    non_finite: jax.Array  # int32, how many have a logit that is not finite
    count: jax.Array  # int32

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(operator.add, self, other)

    def means(self) -> dict[str, float]:
        """loss, top1 and top5 as means over the examples, how many there were, and how many of them have a
        logit that is not finite. top5 is left out for five classes or fewer, where it would be 1."""
        count, names = int(self.count), ("loss", "top1", *(["top5"] if self.top5 is not None else []))
        mean = {name: float(getattr(self, name)) / max(count, 1) for name in names}
        return {**mean, "images": count, "non_finite": int(self.non_finite)}


def is_finite(logits_BxY: jax.Array) -> jax.Array:
    """is_finite_B: whether all logits of an example are numbers. One without is wrong, whatever its label:
    NaN compares as neither higher nor lower, so that no class would be ahead of the label."""
    return jnp.isfinite(logits_BxY).all(axis=-1)


def classification_sums(
    logits_BxY: jax.Array, label_BxK: jax.Array, mask_B: jax.Array, loss_B: jax.Array
) -> Sums:
    """Sums of one batch, where any of the labels of an example is right; -1 is none.

    An example without any label does not count (arXiv:2006.07159, section 4). A label's rank counts the
    classes with a higher logit, and ties before it. An example with a logit that is NaN or infinite is wrong.
    """
    num_classes = logits_BxY.shape[-1]
    label_BxKx1 = label_BxK[..., None]
    own_BxKx1 = jnp.take_along_axis(logits_BxY[:, None], jnp.maximum(label_BxKx1, 0), axis=-1)
    logits_Bx1xY = logits_BxY[:, None]
    is_before_BxKxY = jnp.arange(num_classes)[None, None] < label_BxKx1
    is_ahead_BxKxY = (logits_Bx1xY > own_BxKx1) | ((logits_Bx1xY == own_BxKx1) & is_before_BxKxY)
    is_class_BxK = (label_BxK >= 0) & (label_BxK < num_classes)  # beyond the last, `own` is NaN as well
    rank_B = jnp.where(is_class_BxK, is_ahead_BxKxY.sum(axis=-1), num_classes).min(axis=-1)
    mask_B &= (label_BxK >= 0).any(axis=-1)
    ranked_B = mask_B & is_finite(logits_BxY)
    has_top5 = num_classes > MOST_CLASSES_WITHOUT_TOP5
    return Sums(
        loss=jnp.where(mask_B, loss_B, 0.0).sum(),
        top1=(ranked_B & (rank_B < 1)).sum(dtype=jnp.int32),
        top5=(ranked_B & (rank_B < 5)).sum(dtype=jnp.int32) if has_top5 else None,
        non_finite=(mask_B & ~ranked_B).sum(dtype=jnp.int32),
        count=mask_B.sum(dtype=jnp.int32),
    )


def find_non_finite(metrics: Mapping[str, float | None]) -> str | None:
    """What of an evaluation is not finite, in a few words; None where everything is.

    An evaluation of which this says anything is never the best of a run. `metrics` are those of
    `Sums.means`, as such or as read from JSON, where null is a number that was not finite.
    """
    if number := metrics.get("non_finite"):
        return f"the logits of {number:g} of {metrics['images']:g} images are not finite; they count as wrong"
    for name in ("loss", "top1"):
        if name in metrics and (metrics[name] is None or not math.isfinite(metrics[name])):
            return f"the {name} is not finite"
    return None
