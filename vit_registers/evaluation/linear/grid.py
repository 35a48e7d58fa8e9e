"""Linear classifiers of frozen features, a grid of them trained at once, by DINOv2's protocol.

Axis letters: B images, R learning rates, D channels of an input, Y classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MOMENTUM = 0.9


class Heads(NamedTuple):
    """One classifier for each learning rate, on the same input."""

    kernel_RxDxY: jax.Array
    bias_RxY: jax.Array


def linear_inputs(
    cls_BxLxD: jax.Array, mean_BxD: jax.Array | None, num_blocks: Sequence[int]
) -> dict[str, jax.Array]:
    """The inputs of the grid by name, float32: cls of the last n blocks, and the same with the mean patch.

    `cls_BxLxD` are the cls tokens of the last L blocks, the oldest first, and `mean_BxD` is the mean of the
    patches of the last block, all after the final norm; without it there are only inputs without. There are
    no inputs of more blocks than L.
    """
    inputs = {}
    for number in [number for number in num_blocks if number <= cls_BxLxD.shape[1]]:
        cls_BxM = cls_BxLxD[:, -number:].reshape(len(cls_BxLxD), -1).astype(jnp.float32)
        inputs[f"last{number}"] = cls_BxM
        if mean_BxD is not None:
            inputs[f"last{number}_mean"] = jnp.concatenate([cls_BxM, mean_BxD.astype(jnp.float32)], axis=-1)
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
    """logit_BxRxY for each input."""
    precision = jax.lax.Precision.HIGHEST
    return {
        name: jnp.einsum("bd,rdy->bry", inputs[name], head.kernel_RxDxY, precision=precision)
        + head.bias_RxY[None]
        for name, head in heads.items()
    }


def grid_loss(
    heads: Mapping[str, Heads], inputs: Mapping[str, jax.Array], label_B: jax.Array, mask_B: jax.Array
) -> jax.Array:
    """The sum over heads of the mean cross-entropy over `mask_B`. The heads have no parameter in common."""
    total, count = jnp.zeros(()), jnp.maximum(mask_B.sum(), 1)
    for logit_BxRxY in grid_logits(heads, inputs).values():
        # A product, as the backward pass of a gather is slow on a CPU.
        is_own_BxY = jax.nn.one_hot(label_B, logit_BxRxY.shape[-1])
        own_BxR = jnp.einsum("bry,by->br", logit_BxRxY, is_own_BxY, precision=jax.lax.Precision.HIGHEST)
        log_BxR = own_BxR - jax.nn.logsumexp(logit_BxRxY, axis=-1)
        total -= jnp.where(mask_B[:, None], log_BxR, 0.0).sum() / count
    return total


def grid_step(
    heads: dict[str, Heads],
    velocity: dict[str, Heads],
    inputs: Mapping[str, jax.Array],
    label_B: jax.Array,
    mask_B: jax.Array,
    rate_R: jax.Array,
) -> tuple[dict[str, Heads], dict[str, Heads], jax.Array]:
    """(heads, velocity, loss) after a step of SGD with momentum 0.9 at rates `rate_R`, no weight decay."""
    loss, grads = jax.value_and_grad(grid_loss)(heads, inputs, label_B, mask_B)
    velocity = jax.tree.map(lambda v, g: _MOMENTUM * v + g, velocity, grads)

    def moved(value: jax.Array, speed: jax.Array) -> jax.Array:
        return value - rate_R.reshape(-1, *[1] * (value.ndim - 1)) * speed

    return jax.tree.map(moved, heads, velocity), velocity, loss


def rates_at(step: int | jax.Array, total_steps: int, rate_R: jax.Array) -> jax.Array:
    """The learning rates of a step: cosine from the peak at step 0, without warm-up."""
    return rate_R * 0.5 * (1 + jnp.cos(jnp.pi * step / total_steps))
