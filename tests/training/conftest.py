"""A tiny model and what runs it, on any number of the fake devices."""

import dataclasses
import functools

import jax
import pytest

from vit_registers.config import Config, Data, Model, Optimizer, Run
from vit_registers.data.batch import synthetic_batches, to_device
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

TINY = Config(
    model=Model(
        width=16,
        depth=1,
        num_heads=4,
        patch_size=4,
        image_size=(8, 8),
        num_classes=6,
        num_registers=2,
        summary_factor=2,
        mask="fractal",
        init="deit3",
    ),
    data=Data(batch_size=16, eval_batch_size=16, mixup_alpha=0.2),
    # A large epsilon: the gradient of the key bias is zero but for rounding, which Adam would blow up.
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2, eps=1e-3),
    run=Run(total_steps=40, use_tensorboard=False),
)


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def change():
    """change(config, model={...}, data={...}) -> the config with those settings."""

    def change(config, **sections):
        parts = {name: dataclasses.replace(getattr(config, name), **s) for name, s in sections.items()}
        return dataclasses.replace(config, **parts)

    return change


@functools.cache
def _set_up(config, num_devices):
    mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:num_devices])
    lengths = Durations(total_steps=40, warmup_steps=2, eval_every_steps=40, steps_per_epoch=10.0)
    return mesh, set_up(config, lengths, mesh)


@pytest.fixture
def run_steps():
    """run_steps(config, steps, num_devices=1) -> (state, list of metrics) after that many steps."""

    def run_steps(config, steps, *, num_devices=1, state=None, start_step=0):
        mesh, setup = _set_up(config, num_devices)
        history = []
        with jax.set_mesh(mesh):
            state = setup.make_state() if state is None else state
            batches = synthetic_batches(config, start_step=start_step)
            for _ in range(steps):
                batch = to_device(next(batches), sharding.batch_sharding(mesh))
                state, metrics = setup.train_step(state, batch)
                history.append(jax.device_get(metrics))
        return state, history

    return run_steps
