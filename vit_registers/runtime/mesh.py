"""The device mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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


def ordered_mesh() -> jax.sharding.Mesh:
    """All devices on the axis data, those of process 0 first.

    The rows of a batch are then in the order of the data set. `make_mesh` may follow the wires of a TPU pod.
    """
    return _in_a_row(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def own_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The devices of this process on the axis data; `mesh` itself if it has no devices of others."""
    return _in_a_row(jax.local_devices()) if mesh.is_multi_process else mesh


def _in_a_row(devices: Sequence[Any]) -> jax.sharding.Mesh:
    array = np.array(devices).reshape(len(devices), *[1] * (len(MESH_AXES) - 1))
    return jax.sharding.Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
