"""Losses per example, from logits and soft labels."""

from collections.abc import Callable

import jax
import optax


def softmax(logits_BxY: jax.Array, label_BxY: jax.Array) -> jax.Array:
    """loss_B: cross entropy of the softmax against label distributions."""
    return optax.softmax_cross_entropy(logits_BxY, label_BxY)


def sigmoid(logits_BxY: jax.Array, label_BxY: jax.Array) -> jax.Array:
    """loss_B: binary cross entropy of each class against its label, summed over the classes."""
    return optax.sigmoid_binary_cross_entropy(logits_BxY, label_BxY).sum(axis=-1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
}
