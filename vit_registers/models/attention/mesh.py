"""The platform that attention runs on, and functions that run on each device for its examples and heads."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from vit_registers.config import MESH_AXES
from vit_registers.errors import ConfigError


def platform() -> str:
    """cpu, gpu or tpu: the platform of the current mesh, or else JAX's default. Known during tracing."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def over_mesh(
    attend: Callable[..., jax.Array],
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    bias_NxTxT: np.ndarray | None,
) -> jax.Array:
    """attend(q, k, v, bias), computed on each device for its examples and heads under a mesh with MESH_AXES.

    Without such a mesh, and where its axes are manual already, `attend` is called directly. Raises
    ConfigError if the mesh does not divide the batch or the heads.
    """
    if (sizes := _mesh_sizes()) is None:
        return attend(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT)
    batch, _, heads, _ = q_BxTxNxK.shape
    data, fsdp, tensor = sizes
    if batch % (data * fsdp) or heads % tensor:
        raise ConfigError(
            f"model.attention: {batch} examples and {heads} heads do not divide over mesh.data={data} x "
            f"mesh.fsdp={fsdp} and mesh.tensor={tensor}: use model.attention='xla', or another mesh"
        )
    spec = PartitionSpec(MESH_AXES[:2], None, MESH_AXES[2])
    return jax.shard_map(
        attend,
        in_specs=(spec, spec, spec, PartitionSpec(MESH_AXES[2])),
        out_specs=spec,
        check_vma=False,  # kernels do not declare how their results vary over the mesh
    )(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT)


def on_own_share(function: Callable[[jax.Array], jax.Array], x: jax.Array, heads_axis: int) -> jax.Array:
    """function(x), of the shape of x, computed on each device for its examples (first axis) and heads.

    For functions that XLA's partitioner cannot split: it would gather the whole batch on every device.
    Returns x unchanged if the mesh does not divide the batch or the heads.
    """
    if (sizes := _mesh_sizes()) is None:
        return function(x)
    data, fsdp, tensor = sizes
    if x.shape[0] % (data * fsdp) or x.shape[heads_axis] % tensor:
        return x
    spec = PartitionSpec(MESH_AXES[:2], *[None] * (heads_axis - 1), MESH_AXES[2])
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)


def _mesh_sizes() -> tuple[int, ...] | None:
    """The sizes of MESH_AXES; None without a mesh that has them, and where they are manual already."""
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis, AxisType.Manual) == AxisType.Manual for axis in MESH_AXES):
        return None
    return tuple(mesh.shape[axis] for axis in MESH_AXES)
