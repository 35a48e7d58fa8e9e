"""From a config and a mesh to what the loop needs: the first state, its layout, the compiled step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from vit_registers.config import Config
from vit_registers.models.params import abstract_model, init_params
from vit_registers.training import mixing, sharding
from vit_registers.training.durations import Durations
from vit_registers.training.optimizer import make_optimizer
from vit_registers.training.schedules import schedule
from vit_registers.training.state import (
    TrainState,
    state_from,
    state_shardings,
)
from vit_registers.training.step import Step, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """One run, ready to start. Use it under `jax.set_mesh(mesh)`."""

    graphdef: nnx.GraphDef
    abstract: TrainState  # shapes, dtypes and shardings
    make_state: Callable[[], TrainState]  # makes each part where it belongs, never a whole copy
    start_from: Callable[[Any], TrainState]  # the same from given parameters, which it uses up
    train_step: Step  # compiled at its first call; donates its state


def set_up(config: Config, durations: Durations, mesh: jax.sharding.Mesh) -> Setup:
    """The run of `config` on `mesh`. Raises ConfigError where they do not fit."""
    sharding.check_divisible(config, mesh)
    mixing.check(config.data)
    graphdef, _ = abstract_model(config.model)
    optimizer = make_optimizer(config.optimizer, durations)
    start_from = functools.partial(state_from, settings=config.optimizer, optimizer=optimizer)

    def make_state() -> TrainState:
        return start_from(init_params(config.model, seed=config.run.seed))

    shapes = jax.eval_shape(make_state)
    layout = state_shardings(shapes, mesh)
    step = make_train_step(config, graphdef, optimizer, schedule(config.optimizer, durations))
    return Setup(
        graphdef=graphdef,
        abstract=jax.tree.map(sharding.place, shapes, layout),
        make_state=jax.jit(make_state, out_shardings=layout),
        start_from=jax.jit(start_from, donate_argnums=0, out_shardings=layout),
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(layout, sharding.replicated(mesh))),
    )
