"""Averaged parameters: whether a run has them, how they are updated, and whether they are evaluated."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from vit_registers.config import Optimizer


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether the optimiser maintains the average itself."""
    return optimizer.name == "schedule_free_adamw"


def has_average(optimizer: Optimizer) -> bool:
    """Whether TrainState.ema is not None."""
    return optimizer.ema_decay is not None or is_schedule_free(optimizer)


def eval_field(optimizer: Optimizer) -> str:
    """The field of TrainState that Objective.eval_params receives: "params" or "ema".

    In schedule-free learning the average is the model, and gradients are taken at the trained parameters. An
    exponential average is stored in addition to the trained parameters, and is selected by name.
    """
    return "ema" if is_schedule_free(optimizer) else "params"


def make_average(optimizer: Optimizer) -> Callable[[Any, Any, Any], Any]:
    """average(ema, params, opt_state) -> the average after the step that gave `params`; None without one.

    In schedule-free learning it is x (arXiv:2405.15682), computed from y and z. Else it is ema_decay * ema +
    (1 - ema_decay) * params.
    """
    decay = optimizer.ema_decay
    if is_schedule_free(optimizer):
        # The optimiser is a chain; its second element is the schedule-free one, after clipping.
        return lambda _, params, opt_state: optax.contrib.schedule_free_eval_params(opt_state[1], params)
    if decay is None:
        return lambda ema, params, opt_state: None
    return lambda ema, params, _: jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, params)
