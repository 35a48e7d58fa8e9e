"""Models out of run folders: the one place that turns a checkpoint into a config, parameters or a ViT."""

from typing import Any

import jax
from flax import nnx

from vit_registers.config import Config, Mesh, Model, from_mapping
from vit_registers.models.vit import ViT
from vit_registers.training import checkpoints, sharding, state


def read_config(run: str, step: int | None = None) -> tuple[int, Config]:
    """The step that is read (the newest intact one for None), and the config of the run."""
    step = checkpoints.find_step(run, step)
    return step, from_mapping(checkpoints.read_meta(run, step)["config"])


def read_model(
    run: str, step: int, model: Model, mesh: jax.sharding.Mesh, *, params: str = "params"
) -> tuple[nnx.GraphDef, Any]:
    """The graph definition and the parameters of a checkpoint, laid out over `mesh`."""
    graphdef, abstract = state.abstract_model(model)
    target = jax.tree.map(sharding.place, abstract, sharding.parameter_shardings(abstract, mesh))
    return graphdef, checkpoints.read_params(run, step, target, name=params)


def load(run: str, *, step: int | None = None, params: str = "params") -> ViT:
    """The model of a run folder with the parameters of one checkpoint, on all devices.

    `step` defaults to the newest intact checkpoint; `params` is "params", or "ema" for the averaged ones.
    Raises CheckpointError where there is none.
    """
    step, config = read_config(run, step)
    graphdef, values = read_model(run, step, config.model, sharding.make_mesh(Mesh()), params=params)
    return state.build(graphdef, values)
