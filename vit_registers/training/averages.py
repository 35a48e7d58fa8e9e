"""Averaged parameters: whether a run has them, how they are updated, and whether they are the model."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from vit_registers.config import Optimizer


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether the average is the optimiser's own."""
    return optimizer.name == "schedule_free_adamw"


def has_average(optimizer: Optimizer) -> bool:
    """Whether TrainState.ema is there."""
    return optimizer.ema_decay is not None or is_schedule_free(optimizer)


def eval_field(optimizer: Optimizer) -> str:
    """The field of TrainState that Objective.eval_params takes: "params" or "ema".

    In schedule-free learning the average is the model, and the trained parameters are only the point at which
    gradients are taken. An exponential average is kept beside the trained parameters, and selected by name.
    """
    return "ema" if is_schedule_free(optimizer) else "params"


def make_average(optimizer: Optimizer) -> Callable[[Any, Any, Any], Any]:
    """average(ema, params, opt_state) -> the ema after a step that led to those params; None without one.

    It is x of schedule-free learning (arXiv:2405.15682), solved from y and z; or ema_decay * ema +
    (1 - ema_decay) * params.
    """
    decay = optimizer.ema_decay
    if is_schedule_free(optimizer):
        # The optimiser is a chain that ends with the schedule-free one.
        return lambda _, params, opt_state: optax.contrib.schedule_free_eval_params(opt_state[-1], params)
    if decay is None:
        return lambda ema, params, opt_state: None
    return lambda ema, params, _: jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)
