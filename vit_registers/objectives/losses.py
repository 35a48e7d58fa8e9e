"""Classification losses per example, from logits and label distributions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import ClassificationSettings, lookup
from vit_registers.errors import ConfigError


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


Loss = Callable[[jax.Array, jax.Array], jax.Array]
LOSSES: dict[str, Loss] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "multi_hot": multi_hot,
}


def make_loss_per_example(settings: ClassificationSettings, num_classes: int) -> Loss:
    """The loss that objective.classification.loss selects.

    Raises ConfigError for an unknown loss, and for the softmax over one class.
    """
    if settings.loss == "softmax" and num_classes == 1:
        raise ConfigError(
            "model.num_classes=1 with objective.classification.loss='softmax': the softmax over one class is "
            "always 1, so nothing can be learned; give the data a second class, or set "
            "objective.classification.loss='sigmoid'"
        )
    return lookup(LOSSES, settings.loss, "objective.classification.loss")


def is_finite(logits_BxY: jax.Array) -> jax.Array:
    """is_finite_B: whether all logits of an example are finite.

    An example with a non-finite logit counts as wrong. NaN compares as neither higher nor lower, so that no
    class would rank above the label.
    """
    return jnp.isfinite(logits_BxY).all(axis=-1)
