"""The device mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType

from vit_registers.config import MESH_AXES, Mesh, check_section
from vit_registers.errors import ConfigError


def mesh_shape(mesh: Mesh, num_devices: int) -> tuple[int, ...]:
    """The sizes of MESH_AXES that the settings request. Raises ConfigError if they do not fit the devices."""
    shape = [getattr(mesh, axis) for axis in MESH_AXES]
    asked = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    check_section("mesh", mesh)
    if shape.count(-1) > 1:
        raise ConfigError(f"config.mesh {asked}: at most one may be -1")
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
    """All devices, or the given ones, in the shape of the settings. Raises ConfigError if it does not fit."""
    shape = mesh_shape(mesh, jax.device_count() if devices is None else len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
