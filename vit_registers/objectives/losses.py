"""Classification losses per example, from logits and label distributions, and one of neighbouring patches."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import ClassificationSettings, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.norm import unit
from vit_registers.models.tokens import TokenLayout


def softmax(logits_BxY: jax.Array, label_BxY: jax.Array) -> jax.Array:
    """loss_B: cross entropy of the softmax against label distributions."""
    return optax.softmax_cross_entropy(logits_BxY, label_BxY)


def sigmoid(logits_BxY: jax.Array, label_BxY: jax.Array) -> jax.Array:
    """loss_B: binary cross entropy of each class against its label, summed over the classes."""
    return optax.sigmoid_binary_cross_entropy(logits_BxY, label_BxY).sum(axis=-1)


def multi_hot(logits_BxY: jax.Array, label_BxY: jax.Array) -> jax.Array:
    """loss_B: binary cross entropy against label > 0, averaged over the classes.

    Each class of a mixed image has label 1, for any share: the loss of the code of DeiT-III
    (arXiv:2204.07118, section 3).
    """
    target_BxY = (label_BxY > 0).astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits_BxY, target_BxY).mean(axis=-1)


def smooth_labels(label_BxY: jax.Array, share: float) -> jax.Array:
    """label_BxY with `share` of each distribution spread evenly over the classes (arXiv:1512.00567, 7)."""
    return (1.0 - share) * label_BxY + share / label_BxY.shape[-1] if share else label_BxY


Loss = Callable[[jax.Array, jax.Array], jax.Array]
LOSSES: dict[str, Loss] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "multi_hot": multi_hot,
}


def make_loss_per_example(settings: ClassificationSettings, num_classes: int) -> Loss:
    """The loss that objective.classification.loss selects.

    Raises ConfigError for an unknown loss, for the softmax over one class, and for smoothed labels where
    every label above 0 counts as 1.
    """
    if settings.loss == "multi_hot" and settings.label_smoothing:
        raise ConfigError(
            f"objective.classification.label_smoothing={settings.label_smoothing:g} with "
            "objective.classification.loss='multi_hot': every class would be a label of every image; set "
            "label_smoothing=0, or another loss"
        )
    if settings.loss == "softmax" and num_classes == 1:
        raise ConfigError(
            "model.num_classes=1 with objective.classification.loss='softmax': the softmax over one class is "
            "always 1, so nothing can be learned; give the data a second class, or set "
            "objective.classification.loss='sigmoid'"
        )
    return lookup(LOSSES, settings.loss, "objective.classification.loss")


def neighbour_distance(resid_LxBxTxD: Sequence[jax.Array], layout: TokenLayout) -> jax.Array:
    """distance_B, 0 to 2: 1 - cosine of adjacent patches, mean over L and all pairs in a row or a column.

    arXiv:2505.05892, section 5, names patches that are made similar to their neighbours as a way to keep
    global information out of them, and gives no formula. This one is of this project. `resid_LxBxTxD` are the
    tokens after L blocks, before the final norm: of all blocks, since the last block alone could make all
    patches alike without an effect on cls. Norms have no effect; a patch of zeros has the cosine 0.
    """
    rows, columns = layout.patch_grid
    num_pairs = rows * (columns - 1) + columns * (rows - 1)

    def of_block(resid_BxTxD: jax.Array) -> jax.Array:
        x_BxPxD = resid_BxTxD[:, layout.patches].astype(jnp.float32)
        x_BxHxWxD = unit(x_BxPxD, 1e-6).reshape(x_BxPxD.shape[0], rows, columns, x_BxPxD.shape[-1])
        beside = (x_BxHxWxD[:, :, 1:] * x_BxHxWxD[:, :, :-1]).sum(axis=(1, 2, 3))
        below = (x_BxHxWxD[:, 1:] * x_BxHxWxD[:, :-1]).sum(axis=(1, 2, 3))
        return (num_pairs - beside - below) / max(num_pairs, 1)

    return jnp.stack([of_block(resid_BxTxD) for resid_BxTxD in resid_LxBxTxD]).mean(axis=0)


def is_finite(logits_BxY: jax.Array) -> jax.Array:
    """is_finite_B: whether all logits of an example are finite.

    An example with a non-finite logit counts as wrong. NaN compares as neither higher nor lower, so that no
    class would rank above the label.
    """
    return jnp.isfinite(logits_BxY).all(axis=-1)
