"""The train step: a pure function (state, batch) -> (state, metrics). Read `make_train_step` last."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vit_registers.config import Config
from vit_registers.data.batch import Batch, normalize
from vit_registers.models.params import build_model
from vit_registers.training.averages import make_average
from vit_registers.training.losses import make_loss_per_example
from vit_registers.training.metrics import is_finite
from vit_registers.training.mixing import mix
from vit_registers.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


def prepare(config: Config, key: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalised, mixed images, soft labels, and the mask of the examples that count."""
    image = normalize(batch.image_BxHxWxC, mean=config.data.mean, std=config.data.std)
    label_BxY = jax.nn.one_hot(batch.label_B, config.model.num_classes)
    return mix(key, config.data, image, label_BxY, batch.mask_B)


def make_loss(config: Config, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """loss(params, key, image, label_BxY, mask_B) -> (sum of losses, number of right answers)."""
    loss_per_example = make_loss_per_example(config)

    def loss(params: Any, key: jax.Array, image: jax.Array, label_BxY: jax.Array, mask_B: jax.Array):
        logits_BxY = build_model(graphdef, params)(image, drop_key=key).logits
        loss_B = loss_per_example(logits_BxY, label_BxY)
        is_right_B = logits_BxY.argmax(axis=-1) == label_BxY.argmax(axis=-1)
        is_right_B &= is_finite(logits_BxY)  # argmax takes NaN for the highest
        return jnp.where(mask_B, loss_B, 0.0).sum(), (is_right_B & mask_B).sum()

    return loss


def accumulate(
    gradient: Callable[..., Any], params: Any, key: jax.Array, examples: tuple[jax.Array, ...], steps: int
) -> Any:
    """The sum of `gradient` over `steps` micro-batches. Each takes every steps-th example, so that
    every device works on its own share in each of them."""
    if steps == 1:
        return gradient(params, key, *examples)

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // steps, steps, *x.shape[1:]), 1, 0)

    def body(total: Any, inputs: Any) -> tuple[Any, None]:
        i, micro = inputs
        return jax.tree.map(jnp.add, total, gradient(params, jax.random.fold_in(key, i), *micro)), None

    micro = tuple(split(x) for x in examples)
    shapes = jax.eval_shape(gradient, params, key, *(x[0] for x in micro))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(body, zeros, (jnp.arange(steps), micro))[0]


def updates_made(opt_state: Any) -> jax.Array:
    """How many updates an optimiser has made: the steps that were not skipped."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def make_train_step(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> Step:
    """One update of the parameters, as a function to be jitted with the state donated.

    Metrics: loss and top1 (mean over the examples that count, on mixed labels), grad_norm before
    clipping, update_norm (of what is added to the parameters), learning_rate, all of this very step. Where
    one of them is not finite, the step counts and changes nothing else: parameters, optimiser state and
    average keep their bits, and so does the optimiser's own count of updates, by which the schedule goes.
    """
    gradient = jax.value_and_grad(make_loss(config, graphdef), has_aux=True)
    average = make_average(config.optimizer)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)
        key_mix, key_drop = jax.random.split(key)
        examples = prepare(config, key_mix, batch)
        (loss, right), grads = accumulate(
            gradient, state.params, key_drop, examples, config.optimizer.accumulation_steps
        )
        count = jnp.maximum(examples[-1].sum(), 1)
        grads = jax.tree.map(lambda g: g / count, grads)
        metrics = {
            "loss": loss / count,
            "top1": right / count,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(updates_made(state.opt_state)),
        }
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        # A finite gradient may give another update: 0 / 0 in the optimiser, or a product that overflows.
        metrics["update_norm"] = optax.tree.norm(updates)
        params = optax.apply_updates(state.params, updates)
        ema = average(state.ema, params, opt_state)
        is_sound = jnp.isfinite(jnp.stack([*metrics.values()])).all()
        # A select, as it is fused into the update, which reads and writes all of this anyway.
        params, opt_state, ema = jax.tree.map(
            functools.partial(jnp.where, is_sound),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, ema=ema), metrics

    return train_step
