"""The train step of a config, lowered for devices that need not be there."""

import jax

from vit_registers.config import Config, image_size
from vit_registers.data.batch import labelled_batch
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

DURATIONS = Durations(total_steps=100_000, warmup_steps=1000, eval_every_steps=1000, steps_per_epoch=1000.0)


def lower_step(config: Config, devices: list[jax.Device]) -> jax.stages.Lowered:
    """The train step of `config` over `devices`, which may be those of a topology description."""
    mesh = make_mesh(config.mesh, devices=devices)
    setup = set_up(config, DURATIONS, mesh)
    batch, layout = config.data.batch_size, sharding.batch_sharding(mesh)
    shapes = labelled_batch(
        jax.ShapeDtypeStruct((batch, *image_size(config), config.model.channels), "uint8", sharding=layout),
        jax.ShapeDtypeStruct((batch,), "int32", sharding=layout),
        jax.ShapeDtypeStruct((batch,), "bool", sharding=layout),
    )
    with jax.set_mesh(mesh):
        return setup.train_step.lower(setup.abstract, shapes)
