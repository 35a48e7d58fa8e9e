"""The parameters of a checkpoint: which of them the objective evaluates, and reading them."""

from typing import Any

import jax

from vit_registers.config import Config, from_saved
from vit_registers.objectives.base import BACKBONE
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs import checkpoint_folder
from vit_registers.training import averages, sharding


def trained_config(run: str, step: int) -> Config:
    """The config that a checkpoint was trained with."""
    return from_saved(checkpoint_folder.read_meta(run, step)["config"])


def is_converted(run: str, step: int) -> bool:
    """Whether a checkpoint holds converted weights, which no run has trained."""
    return checkpoint_folder.read_meta(run, step)["origin"] is not None


def eval_params_name(run: str, step: int, config: Config) -> str:
    """The name of the parameters of a checkpoint that are evaluated.

    "params", the trained ones; "ema", the average, after schedule-free training; "eval", those that the
    objective computes from the state if it keeps more than parameters, such as a teacher. `config` is that of
    loading.read_config, whose model can be built here: the trained one may name a mask file that is gone.
    """
    if is_converted(run, step):  # only the model is there
        return "params"
    return "eval" if _shapes(config)[1] else averages.eval_field(config.optimizer)


def _shapes(config: Config) -> tuple[Any, Any]:
    """The (params, extra) of the objective of `config`, as shapes."""
    return jax.eval_shape(make_objective(config).init, jax.random.key(0))


def read_params(
    run: str, step: int, config: Config, mesh: jax.sharding.Mesh, *, params: str | None = None
) -> Any:
    """The parameters of a checkpoint over `mesh`, with the backbone under BACKBONE.

    `config` is that of read_config. `params` is "params", "ema", or None for those that the objective
    evaluates. Raises CheckpointError where they are missing.
    """
    name = params or eval_params_name(run, step, config)
    shapes, extra = _shapes(config)
    if is_converted(run, step):
        shapes = {BACKBONE: shapes[BACKBONE]}

    def place(tree: Any) -> Any:
        return jax.tree.map(sharding.place, tree, sharding.parameter_shardings(tree, mesh))

    if name != "eval":
        return checkpoint_folder.read_state(run, step, {name: place(shapes)})[name]
    field = averages.eval_field(config.optimizer)
    state = checkpoint_folder.read_state(run, step, {field: place(shapes), "extra": place(extra)})
    return make_objective(config).eval_params(state[field], state["extra"])
