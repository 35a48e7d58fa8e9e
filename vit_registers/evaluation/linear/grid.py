"""Linear classifiers of frozen features, a grid of them trained at once, by DINOv2's protocol.

Axis letters: B images, R learning rates, D channels of an input, Y classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # per 256 images
_MOMENTUM = 0.9


class Heads(NamedTuple):
    """One classifier for each learning rate, on the same input."""

    kernel_RxDxY: jax.Array
    bias_RxY: jax.Array


def linear_inputs(cls: Sequence[jax.Array], patches_BxPxD: jax.Array) -> dict[str, jax.Array]:
    """The inputs of the grid by name, float32: cls of the last 1 or 4 blocks, with the mean patch or without.

    `cls` has cls_BxD of the last blocks, the oldest first, and `patches_BxPxD` are the patches of the last
    block, all after the final norm. Registers are in none of them.
    """
    mean_BxD = patches_BxPxD.astype(jnp.float32).mean(axis=1)
    inputs = {}
    for number in (1, 4):
        if number <= len(cls):
            chosen = [x.astype(jnp.float32) for x in cls[-number:]]
            inputs[f"last{number}"] = jnp.concatenate(chosen, axis=-1)
            inputs[f"last{number}_mean"] = jnp.concatenate([*chosen, mean_BxD], axis=-1)
    return inputs


def init_heads(
    key: jax.Array, widths: Mapping[str, int], *, num_rates: int, num_classes: int
) -> dict[str, Heads]:
    """New heads for inputs of these widths: weights N(0, 0.01), biases 0."""
    heads = {}
    for name, one in zip(widths, jax.random.split(key, len(widths)), strict=True):
        kernel = 0.01 * jax.random.normal(one, (num_rates, widths[name], num_classes))
        heads[name] = Heads(kernel, jnp.zeros((num_rates, num_classes)))
    return heads


def grid_logits(heads: Mapping[str, Heads], inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """logit_RxBxY for each input."""
    precision = jax.lax.Precision.HIGHEST
    return {
        name: jnp.einsum("bd,rdy->rby", inputs[name], head.kernel_RxDxY, precision=precision)
        + head.bias_RxY[:, None]
        for name, head in heads.items()
    }


def grid_loss(heads: Mapping[str, Heads], inputs: Mapping[str, jax.Array], label_B: jax.Array) -> jax.Array:
    """The sum over heads of the mean cross-entropy. The heads have no parameter in common."""
    total = jnp.zeros(())
    for logit_RxBxY in grid_logits(heads, inputs).values():
        log_RxBxY = jax.nn.log_softmax(logit_RxBxY)
        own_RxB = jnp.take_along_axis(log_RxBxY, label_B[None, :, None], axis=-1)[..., 0]
        total -= own_RxB.mean(axis=1).sum()
    return total


def grid_step(
    heads: dict[str, Heads],
    velocity: dict[str, Heads],
    inputs: Mapping[str, jax.Array],
    label_B: jax.Array,
    rate_R: jax.Array,
) -> tuple[dict[str, Heads], dict[str, Heads]]:
    """(heads, velocity) after a step of SGD with momentum 0.9, without weight decay, at rates `rate_R`."""
    grads = jax.grad(grid_loss)(heads, inputs, label_B)
    velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, velocity, grads)

    def moved(value: jax.Array, speed: jax.Array) -> jax.Array:
        return value - rate_R.reshape(-1, *[1] * (value.ndim - 1)) * speed

    return jax.tree.map(moved, heads, velocity), velocity


def rates_at(step: int, total_steps: int, rate_R: jax.Array) -> jax.Array:
    """The learning rates of a step: cosine from the peak at step 0, without warm-up."""
    return rate_R * 0.5 * (1 + jnp.cos(jnp.pi * step / total_steps))
