"""Train steps of a config, lowered for devices that need not be there."""

from collections.abc import Sequence

import jax

from tools.bench.models import linen_step
from vit_registers.config import Config
from vit_registers.data.batch import LABEL, TOKENS, Batch
from vit_registers.objectives.base import HasTexts, Objective
from vit_registers.objectives.catalog import make_objective
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

DURATIONS = Durations(total_steps=100_000, warmup_steps=1000, eval_every_steps=1000, steps_per_epoch=1000.0)


def lower_step(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The train step of `config` over `devices`, which may be those of a topology description."""
    return trace_step(config, devices).lower()


def trace_step(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Traced:
    """The train step of `config` over `devices`, traced only."""
    mesh = make_mesh(config.mesh, devices=devices)
    setup = set_up(config, DURATIONS, mesh)
    with jax.set_mesh(mesh):
        return setup.train_step.trace(setup.abstract, _batch(config, mesh, setup.objective))


def lower_flax_step(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The train step of the Flax ViT that tools.bench.step times, with the sizes of `config`."""
    mesh = make_mesh(config.mesh, devices=devices)
    make_state, step = linen_step(config, sharding.replicated(mesh))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        jax.eval_shape(make_state),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, _batch(config, mesh, make_objective(config)))


def _batch(config: Config, mesh: jax.sharding.Mesh, objective: Objective) -> Batch:
    batch, layout = config.data.batch_size, sharding.batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=layout)

    made = {name: make(0, 0, batch) for name, make in objective.host_targets.items()}
    return Batch(
        views={
            name: array((view.height, view.width, config.model.channels), "uint8")
            for name, view in objective.views.items()
        },
        targets={LABEL: array((), "int32")}
        | {name: array(x.shape[1:], str(x.dtype)) for name, x in made.items()}
        | ({TOKENS: array((objective.texts.context,), "int32")} if isinstance(objective, HasTexts) else {}),
        mask_B=array((), "bool"),
    )
