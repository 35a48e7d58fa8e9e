"""The train step: a pure function (state, batch) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import Optimizer
from vit_registers.data.batch import Batch, split_batch
from vit_registers.models.attention.mesh import platform
from vit_registers.objectives.base import Bounded, InParts, Objective, Sums, add_sums
from vit_registers.training.averages import make_average
from vit_registers.training.optimizer import bounds_update
from vit_registers.training.parameter_groups import without_frozen_gradients
from vit_registers.training.state import TrainState

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
# (params, extra, batch, step, key) -> (sums, extra, gradient of the sum of losses)
Gradient = Callable[[Any, Any, Batch, jax.Array, jax.Array], tuple[Sums, Any, Any]]


def make_gradient(objective: Objective, settings: Optimizer) -> Gradient:
    """A function that computes the sums of `objective`, its extra, and the gradient of the sum of losses.

    Frozen parameters have gradient 0, which XLA does not compute. An objective that accumulates itself
    (InParts) does so for the settings' number of micro-batches.
    """
    of_batch = objective.loss
    if isinstance(objective, InParts) and settings.accumulation_steps > 1:
        of_batch = functools.partial(objective.loss_in_parts, num_parts=settings.accumulation_steps)

    def loss(params: Any, *args: Any) -> tuple[jax.Array, tuple[Sums, Any]]:
        sums, extra = of_batch(without_frozen_gradients(params, settings), *args)
        return sums["loss"][0], (sums, extra)

    def gradient(params: Any, *args: Any) -> tuple[Sums, Any, Any]:
        (_, (sums, extra)), grads = jax.value_and_grad(loss, has_aux=True)(params, *args)
        return sums, extra, grads

    return gradient


def accumulate(
    gradient: Gradient,
    params: Any,
    extra: Any,
    batch: Batch,
    step: jax.Array,
    key: jax.Array,
    *,
    num_parts: int,
) -> tuple[Sums, Any, Any]:
    """What `gradient` returns for the whole batch, computed from `num_parts` micro-batches in turn."""
    if num_parts == 1:
        return gradient(params, extra, batch, step, key)

    def body(carry: Any, inputs: Any) -> tuple[Any, None]:
        (sums, grads), extra = carry
        i, micro = inputs
        more, extra, more_grads = gradient(params, extra, micro, step, jax.random.fold_in(key, i))
        return ((add_sums(sums, more), jax.tree.map(jnp.add, grads, more_grads)), extra), None

    micro = split_batch(batch, num_parts)
    first = jax.tree.map(lambda x: x[0], micro)
    sums, _, grads = jax.eval_shape(gradient, params, extra, first, step, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (sums, grads))
    ((sums, grads), extra), _ = jax.lax.scan(body, (zeros, extra), (jnp.arange(num_parts), micro))
    return sums, extra, grads


def updates_made(opt_state: Any) -> jax.Array:
    """The number of updates of an optimiser, which are the steps that were not skipped."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]


def make_train_step(
    objective: Objective,
    settings: Optimizer,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
) -> Step:
    """A function that updates the state by one batch. Jit it with the state donated.

    Metrics are the means of the objective's sums, such as loss; grad_norm before clipping; the learning_rate
    of this step; and update_norm, of what is added to the parameters, unless bounds_update says that it is
    finite: it costs one more pass over gradients, moments and parameters. If one of them is not finite, only
    the step is counted: parameters, extra, optimiser state and average do not change, nor does the
    optimiser's count of updates, which the schedule reads.
    """
    gradient, average = make_gradient(objective, settings), make_average(settings)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key_prepare, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        sums, extra, grads = accumulate(
            gradient,
            state.params,
            state.extra,
            objective.prepare(batch, key_prepare),
            state.step,
            key_loss,
            num_parts=1 if isinstance(objective, InParts) else settings.accumulation_steps,
        )
        counts = {name: jnp.maximum(count, 1) for name, (_, count) in sums.items()}
        grads = jax.tree.map(lambda g: g / counts["loss"], grads)
        metrics = {name: total / counts[name] for name, (total, _) in sums.items()} | {
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": schedule(updates_made(state.opt_state)),
        }
        if not bounds_update(settings):
            # A finite gradient may give an update that is not finite: 0 / 0 in the optimiser, or an overflow.
            updates, _ = optimizer.update(grads, state.opt_state, state.params)
            metrics["update_norm"] = optax.tree.norm(updates)
        is_finite = jnp.isfinite(jnp.stack([*metrics.values()])).all()
        if platform() == "tpu" and "update_norm" in metrics:
            # The update is computed again in the pass that writes the new state. Otherwise a TPU writes it to
            # memory for its norm, reads it here, and updates each array in a pass of its own.
            grads, state, is_finite = jax.lax.optimization_barrier((grads, state, is_finite))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if isinstance(objective, Bounded):
            params = objective.bound(params)
        extra = objective.after_update(params, extra, state.step)
        ema = average(state.ema, params, opt_state)
        # XLA fuses this select into the update, which reads and writes these arrays anyway.
        params, extra, opt_state, ema = jax.tree.map(
            functools.partial(jnp.where, is_finite),
            (params, extra, opt_state, ema),
            (state.params, state.extra, state.opt_state, state.ema),
        )
        step = state.step + 1
        return TrainState(step=step, params=params, opt_state=opt_state, ema=ema, extra=extra), metrics

    return train_step
