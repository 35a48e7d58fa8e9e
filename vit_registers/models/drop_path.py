"""Drop path: residual branches that are left out for some examples in training (arXiv:1603.09382).

Axis letters beside those of tokens.py: G groups of examples, M examples of a group.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.config import Model
from vit_registers.models.partition import shard_batch


def drop_rates(model: Model, depth: int) -> list[float]:
    """The drop path rate of each of `depth` blocks."""
    if model.drop_path_schedule == "constant":
        return [model.drop_path] * depth
    return [model.drop_path * i / max(depth - 1, 1) for i in range(depth)]


def drop_path(x_BxTxD: jax.Array, rate: float | jax.Array, key: jax.Array | None) -> jax.Array:
    """x with each example set to 0 with probability `rate`, and divided by 1 - rate otherwise.

    Without a key, and at rate 0, x exactly. The rate may be an array,
    whose value is not known during tracing.
    """
    if key is None or (isinstance(rate, float) and rate == 0.0):
        return x_BxTxD
    is_kept_Bx1x1 = jax.random.bernoulli(key, 1.0 - rate, (x_BxTxD.shape[0], 1, 1))
    share = jnp.asarray(1.0 - rate, x_BxTxD.dtype)
    return jnp.where(is_kept_Bx1x1, x_BxTxD / share, jnp.zeros((), x_BxTxD.dtype))


def num_kept(rate: float, group: int) -> int:
    """How many of `group` examples a branch is computed for, as in DINOv2's code: at least one."""
    return max(int(group * (1.0 - rate)), 1)


def add_branch(
    resid_BxTxD: jax.Array,
    branch: Callable[[jax.Array], tuple[jax.Array, Any]],
    *,
    rate: float | jax.Array,
    key: jax.Array | None,
    group: int | None,
) -> tuple[jax.Array, Any]:
    """(x + branch(x) under drop path, what else the branch returns).

    Without `group` each example is kept or dropped on its own; see `drop_path`. With it, num_kept(rate,
    group) of each `group` consecutive examples are drawn, without replacement. Only these go through the
    branch, whose output is multiplied by group / num_kept; the rest keep x. A group's draw depends on the key
    and its number, and no value of another group is used, so groups may be on different devices. What else
    the branch returns is then that of the kept examples. `rate` is a float then.
    """
    if group is None or key is None or (isinstance(rate, float) and rate == 0.0):
        out_BxTxD, inner = branch(resid_BxTxD)
        return resid_BxTxD + drop_path(out_BxTxD, rate, key), inner
    assert isinstance(rate, float)  # checks.py: the same rate in all blocks of a loop
    kept, grouped = num_kept(rate, group), (resid_BxTxD.shape[0] // group, group)
    resid_GxMxTxD = resid_BxTxD.reshape(*grouped, *resid_BxTxD.shape[1:])
    kept_GxM = jnp.argsort(jax.random.uniform(key, grouped), axis=1)[:, :kept]
    part_GxMxTxD = _shard_groups(jax.vmap(lambda x, at: x[at])(resid_GxMxTxD, kept_GxM))
    out_BxTxD, inner = branch(part_GxMxTxD.reshape(-1, *resid_BxTxD.shape[1:]))
    scale = jnp.asarray(group / kept, out_BxTxD.dtype)
    out_GxMxTxD = (out_BxTxD * scale).reshape(*kept_GxM.shape, *out_BxTxD.shape[1:])
    add = jax.vmap(lambda x, at, more: x.at[at].add(more, unique_indices=True))
    return add(resid_GxMxTxD, kept_GxM, out_GxMxTxD).reshape(resid_BxTxD.shape), inner


def _shard_groups(x_GxMxTxD: jax.Array) -> jax.Array:
    """x with whole groups on each device, where they divide over the mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    shards = sizes.get("data", 1) * sizes.get("fsdp", 1)
    return x_GxMxTxD if x_GxMxTxD.shape[0] % shards else shard_batch(x_GxMxTxD)
