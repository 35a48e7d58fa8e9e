"""The device mesh, and how what the step reads and writes is laid over it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_registers.config import Data, Mesh, Model, Optimizer, check_section
from vit_registers.errors import ConfigError
from vit_registers.models.attention.mesh import AXES
from vit_registers.models.blocks import dims
from vit_registers.models.partition import parameter_spec
from vit_registers.models.paths import leaf_of, path_text


def mesh_shape(mesh: Mesh, num_devices: int) -> tuple[int, ...]:
    """The sizes of AXES that the config asks for. Raises ConfigError where they do not fit the devices."""
    shape = [getattr(mesh, axis) for axis in AXES]
    asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    check_section("mesh", mesh)
    if shape.count(-1) > 1:
        raise ConfigError(f"config.mesh {asked}: want at most one -1")
    if -1 in shape:
        shape[shape.index(-1)] = num_devices // math.prod(size for size in shape if size != -1)
    if math.prod(shape) != num_devices:
        raise ConfigError(
            f"config.mesh {asked} does not use the {num_devices} devices that there are: give "
            f"sizes whose product is {num_devices}, as --config.mesh.data=-1 --config.mesh.fsdp=1 "
            "--config.mesh.tensor=1"
        )
    return tuple(shape)


def make_mesh(mesh: Mesh, *, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """All devices, or the given ones, in the shape that the config asks for.

    Raises ConfigError where it does not fit them.
    """
    shape = mesh_shape(mesh, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_divisible(model: Model, data: Data, optimizer: Optimizer, mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError if the devices do not divide a batch, or the tensor axis not the model."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    accumulation = optimizer.accumulation_steps
    what = f"{shards} devices (data x fsdp)"
    steps = f" x {accumulation} accumulation steps" if accumulation > 1 else ""
    _check_batch("data.batch_size", data.batch_size, shards * accumulation, f"{what}{steps}")
    _check_batch("data.eval_batch_size", data.eval_batch_size, shards, what)
    _check_tensor_axis(model, mesh)


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

    Raises ConfigError if the devices do not divide a given size, or the tensor axis does not divide the
    model.
    """
    _check_tensor_axis(model, mesh)
    shards, size = mesh.shape["data"] * mesh.shape["fsdp"], data.eval_batch_size
    if is_size_given:
        _check_batch("data.eval_batch_size", size, shards, f"{shards} devices (data x fsdp)")
    size = math.ceil(max(size, 1) / shards) * shards
    return dataclasses.replace(data, eval_batch_size=size)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of batches: examples are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(params: Any, mesh: jax.sharding.Mesh) -> Any:
    """The sharding of each leaf, by RULES of models/partition.py."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(path_text(leaf_of(path)), leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, params)


def place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """The shape with a sharding, which a checkpoint is restored to."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
