"""The programs that tools.bench.step times: train steps, forward passes and matmuls."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tools.bench import models as bench_models
from vit_registers.analysis.experiments.cost import forward_flops
from vit_registers.config import Config, Model
from vit_registers.data.batch import IMAGE, Batch, normalize, synthetic_batches, to_device
from vit_registers.models.blocks import DTYPES
from vit_registers.models.params import abstract_model, build_model
from vit_registers.models.vit import token_layout
from vit_registers.objectives.base import BACKBONE
from vit_registers.training import sharding
from vit_registers.training.durations import Durations
from vit_registers.training.setup import set_up

DURATIONS = Durations(total_steps=10_000, warmup_steps=100, eval_every_steps=1000, steps_per_epoch=1000.0)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A program to time."""

    step: str  # STEPS
    name: str  # the step, and the settings that differ from the config
    config: Config


@dataclasses.dataclass
class Program:
    """A variant that runs on the device, and its speed in each round."""

    name: str
    config: Config
    num_images: int  # of a call
    call: Callable[[], Any]  # starts one step
    flops: float  # of the matrix products of one image
    memory: str = ""
    one_s: float = math.nan
    rates: list[float] = dataclasses.field(default_factory=list)  # images/s

    def rate(self, seconds: float) -> float:
        """Images per second, measured over about `seconds` seconds."""
        calls = max(2, round(seconds / self.one_s))
        started = time.perf_counter()
        for _ in range(calls):
            result = self.call()
        jax.block_until_ready(result)
        self.one_s = (time.perf_counter() - started) / calls
        return self.num_images / self.one_s


def flops_per_image(model: Model, step: str) -> float:
    """FLOPs of one image's matrix products; a train step has three times those of a forward pass."""
    forward = forward_flops(model, token_layout(model))
    return forward * (1 if step == "forward" else 3)


def prepare_program(variant: Variant, mesh: jax.sharding.Mesh) -> Program:
    """The variant, compiled and run twice. Raises any error that prevents it from running here."""
    config = variant.config
    held = _device_memory("bytes_in_use")
    batch = to_device(next(synthetic_batches(config.data, config.model)), sharding.batch_sharding(mesh))
    compiled, call = STEPS[variant.step](config, mesh, batch)
    peak_before = _device_memory("peak_bytes_in_use")
    jax.block_until_ready(call())
    peak = _device_memory("peak_bytes_in_use")
    memory = f"{_compiled_bytes(compiled) / 2**30:7.3f} compiled"
    if peak > peak_before:  # else the peak is that of another program
        memory = f"{(peak - held) / 2**30:7.3f} device"
    started = time.perf_counter()
    jax.block_until_ready(call())
    return Program(
        name=variant.name,
        config=config,
        num_images=config.data.batch_size,
        call=call,
        flops=flops_per_image(config.model, variant.step),
        memory=memory,
        one_s=time.perf_counter() - started,
    )


Started = tuple[jax.stages.Compiled, Callable[[], Any]]


def train_step(config: Config, mesh: jax.sharding.Mesh, batch: Batch) -> Started:
    """The train step of training, compiled, and a function that runs it once and returns its metrics."""
    setup = set_up(config, DURATIONS, mesh)
    state = setup.make_state()
    compiled = setup.train_step.lower(state, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return compiled, call


def forward_pass(config: Config, mesh: jax.sharding.Mesh, batch: Batch) -> Started:
    """The forward pass from 8-bit images to logits, compiled, and a function that runs it once."""
    setup = set_up(config, DURATIONS, mesh)
    params, graphdef = setup.make_state().params[BACKBONE], abstract_model(config.model)[0]

    @jax.jit
    def logits(params: Any, batch: Batch) -> jax.Array:
        image = normalize(batch.views[IMAGE], mean=config.data.mean, std=config.data.std)
        return build_model(graphdef, params)(image).logits

    compiled = logits.lower(params, batch).compile()
    return compiled, lambda: compiled(params, batch)


def flax_step(config: Config, mesh: jax.sharding.Mesh, batch: Batch) -> Started:
    """The train step of the Flax ViT, compiled, and a function that runs it once. Its state is replicated."""
    make_state, step = bench_models.linen_step(config, sharding.replicated(mesh))
    state = make_state()
    compiled = step.lower(state, batch).compile()

    def call() -> Any:
        nonlocal state
        state, loss = compiled(state, batch)
        return loss

    return compiled, call


STEPS = {"train": train_step, "forward": forward_pass, "flax": flax_step}


@dataclasses.dataclass
class Other:
    """timm's train step, which is timed like a Program."""

    process: bench_models.TimmProcess
    name: str
    config: Config
    flops: float
    memory: str
    rates: list[float] = dataclasses.field(default_factory=list)

    def rate(self, seconds: float) -> float:
        """Images per second, measured over about `seconds` seconds."""
        return self.process.rate(seconds)


def _device_memory(name: str) -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get(name, 0)


def _compiled_bytes(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    shared = memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.output_size_in_bytes - shared + memory.temp_size_in_bytes


def matmul_peak(dtype: str, sizes: tuple[int, ...], seconds: float) -> tuple[float, int]:
    """(FLOP/s, side) of the fastest product of two square matrices of normal numbers; median of 3 rounds."""
    best = 0.0, 0
    for side in sizes:
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (side, side), DTYPES[dtype]) for key in keys)
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(a, b))
        started = time.perf_counter()
        jax.block_until_ready(product(a, b))
        calls = max(2, round(seconds / (time.perf_counter() - started)))
        times = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(calls):
                result = product(a, b)
            jax.block_until_ready(result)
            times.append(time.perf_counter() - started)
        best = max(best, (2 * side**3 * calls / statistics.median(times), side))
    return best
