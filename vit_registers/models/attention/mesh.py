"""Where attention runs: the platform, and kernels that XLA cannot split run on each device's share."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from vit_registers.errors import ConfigError

AXES = ("data", "fsdp", "tensor")  # batch, batch, heads


def platform() -> str:
    """cpu, gpu or tpu: that of the mesh which is set, else JAX's default. Known when tracing."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def over_mesh(
    attend: Callable[..., jax.Array],
    q_BxTxNxK: jax.Array,
    k_BxTxNxK: jax.Array,
    v_BxTxNxK: jax.Array,
    bias_NxTxT: np.ndarray | None,
) -> jax.Array:
    """attend(q, k, v, bias), on each device for its own examples and heads where a mesh with AXES is set.

    Without such a mesh, and where the axes are split by hand already, it is called as it is. Raises
    ConfigError where the mesh does not divide batch or heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis, AxisType.Manual) == AxisType.Manual for axis in AXES):
        return attend(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT)
    batch, _, heads, _ = q_BxTxNxK.shape
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    if batch % (data * fsdp) or heads % tensor:
        raise ConfigError(
            f"model.attention: {batch} examples and {heads} heads do not divide over mesh.data={data} x "
            f"mesh.fsdp={fsdp} and mesh.tensor={tensor}: use model.attention='xla', or another mesh"
        )
    spec = PartitionSpec(AXES[:2], None, AXES[2])
    return jax.shard_map(
        attend,
        in_specs=(spec, spec, spec, PartitionSpec(AXES[2])),
        out_specs=spec,
        check_vma=False,  # kernels do not say how their results vary over the mesh
    )(q_BxTxNxK, k_BxTxNxK, v_BxTxNxK, bias_NxTxT)


def on_own_share(function: Callable[[jax.Array], jax.Array], x: jax.Array, heads_axis: int) -> jax.Array:
    """function(x), which keeps the shape, on each device for its own examples and heads.

    Examples are x's first axis. For what XLA's partitioner does not know how to split: it would first bring
    the whole batch to every device. Where the mesh does not divide batch and heads, x as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types.get(axis, AxisType.Manual) == AxisType.Manual for axis in AXES):
        return function(x)
    data, fsdp, tensor = (mesh.shape[axis] for axis in AXES)
    if x.shape[0] % (data * fsdp) or x.shape[heads_axis] % tensor:
        return x
    spec = PartitionSpec(AXES[:2], *[None] * (heads_axis - 1), AXES[2])
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)
