"""A lower bound on the memory that a run requires. A run that cannot fit is refused before it starts.

Without this check a run fails after minutes, and the operating system may end other programs before it.
"""

import contextlib
import os
import resource

import jax

from vit_registers.config import Data, Model, Optimizer
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.vit import token_layout


def check_memory(model: Model, data: Data, mesh: jax.sharding.Mesh, *, training: Optimizer | None) -> None:
    """Raises ConfigError if the devices of `mesh` have less memory than the settings require at least.

    With `training`, the optimiser state and the activations of a training step are included. If it is None,
    only parameters and one forward pass of an evaluation batch are.
    """
    available = available_bytes(mesh)
    if available is None:
        return
    parts = {"the parameters": 4 * least_parameters(model)}
    parts["an evaluation batch"] = _batch_bytes(model, data, data.eval_batch_size)
    if training is not None:
        moments = 6 if training.mu_dtype == "bfloat16" else 8
        average = 0 if training.ema_decay is None else 4
        parts["the parameters and their moments"] = least_parameters(model) * (4 + moments + average)
        micro = data.batch_size // training.accumulation_steps
        # The input of every block is kept for the backward pass, also if blocks are recomputed.
        kept = max(dims(model).depth, 1)
        parts["a training batch"] = _batch_bytes(model, data, micro, kept=kept)
    what, needed = max(parts.items(), key=lambda part: part[1])
    if needed > available:
        raise ConfigError(
            f"{what} alone would take {needed / 2**30:,.0f} GiB, and there are {available / 2**30:,.1f} GiB "
            f"on {mesh.size} devices: take a smaller model, image size or batch (data.batch_size="
            f"{data.batch_size}, data.eval_batch_size={data.eval_batch_size}), more "
            "optimizer.accumulation_steps, or more devices"
        )


def least_parameters(model: Model) -> int:
    """A lower bound on the number of parameters: those of attention, MLPs, patches, registers and head."""
    sizes = dims(model)
    block = sizes.width * (4 * sizes.width + (3 if sizes.mlp == "swiglu" else 2) * sizes.mlp_dim)
    patches = model.channels * model.patch_size**2 * sizes.width
    return sizes.depth * block + patches + sizes.width * (model.num_registers + model.num_classes)


def _batch_bytes(model: Model, data: Data, size: int, *, kept: int = 1) -> int:
    """A lower bound on the bytes of a batch: its images, or `kept` arrays of tokens.

    Attention weights are left out, because not every back end and compiler stores them.
    """
    sizes, tokens = dims(model), token_layout(model).num_tokens
    bytes_each = 2 if model.dtype == "bfloat16" else 4
    height, width = data.image_size or model.image_size
    return size * max(height * width * model.channels, kept * tokens * sizes.width * bytes_each)


def available_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """The bytes of all devices of the mesh; None if they do not report them. CPU devices share the host's."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit is not None:
        return limit * mesh.size
    if device.platform != "cpu":  # the platform does not report its memory
        return None
    return _host_memory() * jax.process_count()


def _host_memory() -> int:
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits += [address_space] if address_space != resource.RLIM_INFINITY else []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}") as file:
            limits.append(int(file.read()))
    return min(limits)
