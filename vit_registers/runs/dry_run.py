"""What a run would need: its sizes, data, FLOPs and memory. Nothing is written."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from vit_registers.data.batch import Batch
from vit_registers.data.loaders import Loader
from vit_registers.models.vit import token_layout
from vit_registers.runs.prepared import Prepared
from vit_registers.status import waiting
from vit_registers.training.memory import available_bytes
from vit_registers.training.setup import Setup, set_up
from vit_registers.training.sharding import batch_sharding

_BYTE_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def describe_run(prepared: Prepared) -> Iterator[str]:
    """The lines of the description. Reads the first batch and compiles the train step. Use it under the mesh.

    FLOPs are those of the unoptimised step with the attention back end "xla" and nothing recomputed; memory
    is that of the compiled step.
    """
    mesh, loader, size = prepared.mesh, prepared.loader, prepared.computed.data.batch_size
    yield f"model      {_model_text(prepared)}"
    yield f"data       {_data_text(prepared)}"
    yield f"length     {_length_text(prepared)}"
    yield f"devices    {_devices_text(prepared)}"
    started = time.monotonic()
    batch = next(iter(loader.train_batches(0, batch_sharding(mesh))))
    jax.block_until_ready(batch)
    shapes = ", ".join(f"{'x'.join(map(str, view.shape))}" for view in batch.views.values())
    yield f"batch      {shapes}, read in {time.monotonic() - started:.1f} s"
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
    flops = count_flops(prepared, abstract)
    if flops is not None:
        each = _scaled(flops / size)
        yield f"FLOPs      {_scaled(flops)} for a step, {each} for an image, forward and backward"
    yield from _step_lines(prepared.setup, abstract, mesh)


def count_flops(prepared: Prepared, batch: Batch) -> float | None:
    """The FLOPs of a train step on a batch, by XLA's count of the unoptimised step, for all devices.

    XLA counts the body of a loop once and sees nothing of kernels, so the step is traced without them. None
    if the platform does not count FLOPs.
    """
    config = prepared.computed
    plain = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, use_scan=False, attention="xla", remat="none"),
        optimizer=dataclasses.replace(config.optimizer, accumulation_steps=1),
    )
    costs = _lower(set_up(plain, prepared.durations, prepared.mesh), batch).cost_analysis()
    return None if costs is None else float(costs["flops"])


def _lower(setup: Setup, batch: Batch) -> jax.stages.Lowered:
    step: Any = setup.train_step  # a function of jax.jit
    return step.lower(setup.abstract, batch)


def _step_lines(setup: Setup, batch: Batch, mesh: jax.sharding.Mesh) -> Iterator[str]:
    with waiting("compiling the train step", is_quiet=jax.process_index() != 0):
        needed = _lower(setup, batch).compile().memory_analysis()
    state = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(setup.abstract))
    parts = [f"{_bytes(state)} for parameters, optimiser state and average"]
    total = "unknown for a step"
    if needed is not None:
        both = needed.argument_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes
        total = f"{_bytes(both + needed.temp_size_in_bytes)} for a step"
        parts.append(f"{_bytes(needed.temp_size_in_bytes)} for activations and gradients")
        parts.append(f"{_bytes(both - state)} for the batch")
    available = available_bytes(mesh)
    limit = "" if available is None else f", of {_bytes(available / mesh.size)}"
    yield f"memory     {total}, on each device{limit}: {parts[0]}"
    yield from (f"           {part}" for part in parts[1:])


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _model_text(prepared: Prepared) -> str:
    leaves = jax.tree.leaves(prepared.setup.abstract.params)
    layout = token_layout(prepared.computed.model)
    groups = ", ".join(f"{where.stop - where.start} {name}" for name, where in layout.groups.items())
    count = sum(leaf.size for leaf in leaves)
    return f"{count:,} parameters in {len(leaves)} tensors; {layout.num_tokens} tokens: {groups}"


def _data_text(prepared: Prepared) -> str:
    loader, train = prepared.loader, prepared.computed.data.train_split
    number = loader.num_examples(train)
    splits = prepared.splits.items()
    others = [f"{one.loader.num_examples(one.split):,} in '{name}'" for name, one in splits]
    return (
        f"{loader.name}: {number:,} images in '{train}' to train on; to evaluate {', '.join(others)}; "
        f"{loader.num_classes or 'no'} classes{_texts_text(loader)}"
    )


def _texts_text(loader: Loader) -> str:
    if loader.texts is None:
        return ""
    tokenizer, context = loader.texts.tokenizer, loader.texts.wanted.context
    return f"; captions as {context} tokens of '{tokenizer.name}', which has {tokenizer.vocab_size:,}"


def _length_text(prepared: Prepared) -> str:
    config, durations = prepared.computed, prepared.durations
    total, per_epoch = durations.total_steps, durations.steps_per_epoch
    evaluations = len(durations.evaluations_until(total))
    return (
        f"{total:,} steps of {config.data.batch_size:,} images, {total / per_epoch:.4g} epochs; warm-up of "
        f"{durations.warmup_steps:,} steps; {evaluations} evaluations; a checkpoint every "
        f"{config.checkpoint.every_steps:,} steps"
    )


def _devices_text(prepared: Prepared) -> str:
    mesh, model = prepared.mesh, prepared.computed.model
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} ({axes}); attention {model.attention}, {model.dtype}"


def _scaled(number: float) -> str:
    unit, name = next((pair for pair in _UNITS if number >= pair[0]), (1.0, ""))
    return f"{number / unit:.3g} {name}".rstrip()


def _bytes(number: float) -> str:
    unit, name = next((pair for pair in _BYTE_UNITS if number >= pair[0]), (1, "bytes"))
    return f"{number / unit:.3g} {name}"
