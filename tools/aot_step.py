"""Train steps of a config, lowered for devices that need not be there."""

from collections.abc import Sequence

import jax

from tools.bench.models import linen_step
from vit_registers.config import Config, image_size
from vit_registers.data.batch import Batch, labelled_batch
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

DURATIONS = Durations(total_steps=100_000, warmup_steps=1000, eval_every_steps=1000, steps_per_epoch=1000.0)


def lower_step(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The train step of `config` over `devices`, which may be those of a topology description."""
    mesh = make_mesh(config.mesh, devices=devices)
    setup = set_up(config, DURATIONS, mesh)
    with jax.set_mesh(mesh):
        return setup.train_step.lower(setup.abstract, _batch(config, mesh))


def lower_flax_step(config: Config, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The train step of the Flax ViT that tools.bench.step times, with the sizes of `config`."""
    mesh = make_mesh(config.mesh, devices=devices)
    make_state, step = linen_step(config, sharding.replicated(mesh))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)),
        jax.eval_shape(make_state),
    )
    with jax.set_mesh(mesh):
        return step.lower(state, _batch(config, mesh))


def _batch(config: Config, mesh: jax.sharding.Mesh) -> Batch:
    batch, layout = config.data.batch_size, sharding.batch_sharding(mesh)
    return labelled_batch(
        jax.ShapeDtypeStruct((batch, *image_size(config), config.model.channels), "uint8", sharding=layout),
        jax.ShapeDtypeStruct((batch,), "int32", sharding=layout),
        jax.ShapeDtypeStruct((batch,), "bool", sharding=layout),
    )
