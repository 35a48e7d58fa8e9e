"""Sharding of parameters and batches over the mesh, and gathering of parameters before use.

Mesh axes: data (batch), fsdp (batch and parameters), tensor (heads and MLP). RULES alone defines the sharding
of parameters. Without a mesh that has these axes, no function here has an effect.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vit_registers.models.paths import leaf_of, path_text

# The first pattern that a parameter's path contains applies; other parameters are replicated.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"attn/qkv/kernel", PartitionSpec("fsdp", None, "tensor", None)),
    (r"attn/qkv/bias", PartitionSpec(None, "tensor", None)),
    (r"attn/frequencies", PartitionSpec(None, "tensor", None)),
    (r"attn/out/kernel", PartitionSpec("tensor", None, "fsdp")),
    (r"mlp/fc1/kernel", PartitionSpec("fsdp", "tensor")),
    (r"mlp/fc1/bias", PartitionSpec("tensor")),
    (r"mlp/fc2/kernel", PartitionSpec("tensor", "fsdp")),
    (r"mlp/w12/kernel", PartitionSpec("fsdp", None)),
    (r"mlp/w3/kernel", PartitionSpec("tensor", "fsdp")),
    (r"patch_embed/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"(head|pre_logits)/kernel", PartitionSpec("fsdp", None)),
    (r"token_embed/embedding", PartitionSpec(None, "fsdp")),
    (r"proj/kernel", PartitionSpec("fsdp", None)),
    (r"_head/mlp/\d/kernel", PartitionSpec("fsdp", None)),
    (r"_head/last_layer/v", PartitionSpec("fsdp", "tensor")),
    (r"_head/last_layer/g", PartitionSpec("tensor")),
)


def parameter_spec(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """The PartitionSpec by RULES of the parameter at that path, on a mesh with those sizes by axis name.

    An axis of the parameter that the mesh axis does not divide is not split.
    """
    spec = next((spec for pattern, spec in RULES if re.search(pattern, name)), PartitionSpec())
    fits = (
        axis if axis is None or size % sizes[axis] == 0 else None
        for axis, size in zip(spec, shape, strict=False)
    )
    return PartitionSpec(*fits)


def batch_axes() -> tuple[str, ...]:
    """The mesh axes over which a batch is split, data and fsdp; () without such a mesh."""
    axes = ("data", "fsdp")
    return axes if set(axes) <= set(jax.sharding.get_abstract_mesh().axis_names) else ()


def shard_batch(x: jax.Array) -> jax.Array:
    """x with its first axis split over the mesh axes data and fsdp; x without such a mesh."""
    if axes := batch_axes():
        return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
    return x


def in_compute_dtype(params: Any, dtype: jnp.dtype) -> Any:
    """The parameters with kernels cast to `dtype`, in which their layers compute."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
    )


def gathered(params: Any, dtype: jnp.dtype, prefix: str = "") -> Any:
    """The parameters gathered over fsdp and split over tensor, kernels in `dtype`.

    Without this, XLA's partitioner may keep weights split and move activations instead, by a cost model that
    we do not control. Gradients are split over fsdp, as the parameters are. `prefix` precedes the paths in
    `params`. If fsdp has one device, returns `params` unchanged.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("fsdp", 1) == 1:
        return params

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        spec = parameter_spec(prefix + path_text(leaf_of(path)), leaf.shape, sizes)
        if "fsdp" not in spec:
            return leaf
        whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
        return _move(leaf, spec, whole)

    return jax.tree_util.tree_map_with_path(gather, in_compute_dtype(params, dtype))


def stacked(trees: Sequence[Any]) -> Any:
    """The parameters of equal blocks as one tree with a leading axis of blocks, sharded as each block is."""
    sizes = jax.sharding.get_abstract_mesh().shape

    def stack(path: tuple[Any, ...], *leaves: jax.Array) -> jax.Array:
        together = jnp.stack(leaves)
        if not {"fsdp", "tensor"} <= set(sizes):
            return together
        spec = parameter_spec(path_text(leaf_of(path)), leaves[0].shape, sizes)
        return jax.lax.with_sharding_constraint(together, PartitionSpec(None, *spec))

    return jax.tree_util.tree_map_with_path(stack, *trees)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _move(x: jax.Array, before: PartitionSpec, after: PartitionSpec) -> jax.Array:
    """x with sharding `after`; its gradient has sharding `before`."""
    return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x, before), after)


def _move_forward(x: jax.Array, before: PartitionSpec, after: PartitionSpec) -> tuple[jax.Array, None]:
    return _move(x, before, after), None


def _move_backward(
    before: PartitionSpec, after: PartitionSpec, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, before),)


_move.defvjp(_move_forward, _move_backward)
