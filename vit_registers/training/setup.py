"""Builds what the loop requires from a config and a mesh: the initial state, its sharding, the train step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_registers.config import Config, Model
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.attention_choice import choose_attention
from vit_registers.objectives.base import InParts, Objective
from vit_registers.objectives.catalog import make_objective
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import make_optimizer
from vit_registers.training.parameter_groups import rate_multipliers
from vit_registers.training.schedules import schedule
from vit_registers.training.state import TrainState, state_from, state_shardings
from vit_registers.training.step import Step, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """One run, ready to start. Use it under `jax.set_mesh(mesh)`."""

    objective: Objective
    abstract: TrainState  # shapes, dtypes and shardings
    make_state: Callable[[], TrainState]  # sharded from the start; no device holds a whole copy
    start_from: Callable[
        [Any, Any], TrainState
    ]  # the same with a given backbone and heads, or None for these
    train_step: Step  # compiled at its first call; donates its state


def agree_on_attention(model: Model) -> tuple[Model, str | None]:
    """The model with the attention back end that "auto" selects on process 0, for all processes.

    The text says why the fastest back end is not used; None if it is, and on other processes.
    """
    if model.attention != "auto":
        return model, None
    names, obstacle = list(BACKENDS), None
    if jax.process_index() == 0:
        model, obstacle = choose_attention(model)
    number = multihost_utils.broadcast_one_to_all(np.int32(names.index(model.attention)))
    return dataclasses.replace(model, attention=names[int(number)]), obstacle


def set_up(config: Config, durations: Durations, mesh: jax.sharding.Mesh) -> Setup:
    """The run of `config` on `mesh`. Raises ConfigError if they do not fit, or for invalid combinations."""
    sharding.check_divisible(config.model, config.data, config.optimizer, mesh)
    run = dataclasses.replace(config.run, total_steps=durations.total_steps, total_epochs=None)
    objective = make_objective(dataclasses.replace(config, run=run))
    objective.check()
    can_accumulate = objective.is_additive or isinstance(objective, InParts)
    if config.optimizer.accumulation_steps > 1 and not can_accumulate:
        raise ConfigError(
            f"optimizer.accumulation_steps={config.optimizer.accumulation_steps}: the loss of "
            f"objective.name='{config.objective.name}' is not a sum over examples, so it requires the "
            "whole batch at once: set optimizer.accumulation_steps=1"
        )
    optimizer = make_optimizer(config.optimizer, durations)

    def start_from(backbone: Any, heads: Any) -> TrainState:
        given = {} if heads is None else {"heads": heads}
        params, extra = objective.init(jax.random.key(config.run.seed), backbone, **given)
        return state_from(params, extra, settings=config.optimizer, optimizer=optimizer)

    make_state = functools.partial(start_from, None, None)
    shapes = jax.eval_shape(make_state)
    rate_multipliers(shapes.params, config.optimizer)  # raises for patterns that match nothing
    layout = state_shardings(shapes, mesh)
    rates = schedule(config.optimizer, durations)
    step = make_train_step(objective, config.optimizer, optimizer, rates, seed=config.run.seed)
    return Setup(
        objective=objective,
        abstract=jax.tree.map(sharding.place, shapes, layout),
        make_state=jax.jit(make_state, out_shardings=layout),
        start_from=jax.jit(start_from, donate_argnums=(0, 1), out_shardings=layout),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh))),
    )
