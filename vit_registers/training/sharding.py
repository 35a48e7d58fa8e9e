"""How the arrays that a step reads and writes are laid over the device mesh."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_registers.config import Data, Model, Optimizer
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.partition import parameter_spec
from vit_registers.models.paths import leaf_of, path_text

T = TypeVar("T")


def check_divisible(model: Model, data: Data, optimizer: Optimizer, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError if a batch does not divide over the devices, or heads over the tensor axis."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    accumulation = optimizer.accumulation_steps
    what = f"{shards} devices (data x fsdp)"
    steps = f" x {accumulation} accumulation steps" if accumulation > 1 else ""
    _check_batch("data.batch_size", data.batch_size, shards * accumulation, f"{what}{steps}")
    _check_batch("data.eval_batch_size", data.eval_batch_size, shards, what)
    _check_tensor_axis(model, mesh)
    size, group = data.batch_size // accumulation, model.drop_path_group
    if group and model.drop_path and size % group:
        largest = next(i for i in range(min(size, group), 0, -1) if size % i == 0)
        raise ConfigError(
            f"model.drop_path_group={group} does not divide the {size} images of a "
            f"{'micro-' * bool(steps)}batch: set it to {largest}, or change data.batch_size"
        )


def _check_batch(name: str, size: int, parts: int, what: str) -> None:
    if size % parts:
        raise ConfigError(f"{name}={size} is not divisible by {what}: must be a multiple of {parts}")


def _check_tensor_axis(model: Model, mesh: jax.sharding.Mesh) -> None:
    tensor, sizes = mesh.shape["tensor"], dims(model)
    for name, size in (("heads", sizes.num_heads), ("mlp_dim", sizes.mlp_dim)):
        if size % tensor:
            raise ConfigError(f"mesh.tensor={tensor} does not divide the model's {name} ({size})")


def fit_evaluation(data: Data, model: Model, mesh: jax.sharding.Mesh, *, is_size_given: bool) -> Data:
    """The settings with eval_batch_size rounded up to a multiple of the devices, unless `is_size_given`.

    Raises ConfigError if a given size does not divide over them, or the model over the tensor axis.
    """
    _check_tensor_axis(model, mesh)
    shards, size = mesh.shape["data"] * mesh.shape["fsdp"], data.eval_batch_size
    if is_size_given:
        _check_batch("data.eval_batch_size", size, shards, f"{shards} devices (data x fsdp)")
    size = math.ceil(max(size, 1) / shards) * shards
    return dataclasses.replace(data, eval_batch_size=size)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of examples over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of each leaf, by RULES of models/partition.py."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_text(leaf_of(path)), leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """The shape with that sharding, to which a checkpoint is restored."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@functools.lru_cache(maxsize=8)
def replicate(mesh: jax.sharding.Mesh) -> Callable[[T], T]:
    """A compiled function of arrays over `mesh`: the same arrays, whole on every device.

    NumPy can read them on every process. All processes of the mesh have to call it.
    """
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def put_same(tree: T, layout: Any) -> T:
    """The arrays on devices, from arrays that are equal on all processes and that each has as a whole.

    `layout` is a sharding for all arrays, or a tree of shardings. jax.device_put would send the arrays of
    each process to all others, to compare them.
    """

    def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(layout, jax.sharding.Sharding):
        return jax.tree.map(lambda x: put(x, layout), tree)
    return jax.tree.map(put, tree, layout)


def on_own_devices(tree: T, mesh: jax.sharding.Mesh, own: jax.sharding.Mesh) -> T:
    """The arrays over `mesh`, whole on each device of `own`, which is own_mesh(mesh) of runtime/mesh.py.

    All processes have to call it; what each then does with the arrays concerns no other. Unchanged if `mesh`
    has no other process.
    """
    if not mesh.is_multi_process:
        return tree
    here = replicated(own)

    def take(x: jax.Array) -> jax.Array:
        parts = {shard.device: shard.data for shard in x.addressable_shards}
        return jax.make_array_from_single_device_arrays(
            x.shape, here, [parts[device] for device in own.devices.flat]
        )

    return jax.tree.map(take, replicate(mesh)(tree))
