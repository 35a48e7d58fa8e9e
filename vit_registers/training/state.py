"""TrainState: everything that a step changes, and its sharding."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from vit_registers.config import Optimizer
from vit_registers.models.paths import leaf_of
from vit_registers.training.averages import has_average
from vit_registers.training.sharding import parameter_shardings, replicated


@struct.dataclass
class TrainState:
    """Everything that a step changes. Randomness is a function of (seed, step), so it is not part of it.

    Leaves are arrays, or shapes or shardings in trees of those.
    """

    step: Any  # int32 scalar: the number of steps so far
    params: Any  # nested dict of float32 arrays
    opt_state: Any
    ema: Any  # averaged params, or None
    extra: Any = struct.field(default_factory=dict)  # what the objective updates without a gradient


def state_from(
    params: Any, extra: Any, *, settings: Optimizer, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step. The average starts from the parameters too."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if has_average(settings) else None,
        extra=extra,
    )


def put_parameters(params: Any, taken: Mapping[tuple[str | int, ...], np.ndarray]) -> Any:
    """`params` with the values of `taken`, by path, in place of its own. Shardings are unchanged.

    The masked part of a masked array is not used: those elements keep the values of `params`.
    """

    def put(path: tuple, leaf: jax.Array) -> jax.Array:
        value = taken.get(leaf_of(path))
        if value is None:
            return leaf
        if np.ma.isMaskedArray(value):
            mask, data = np.ma.getmaskarray(value), value.data
            return jax.jit(lambda own: jnp.where(mask, own, data), out_shardings=leaf.sharding)(leaf)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    return jax.tree_util.tree_map_with_path(put, params)


def state_shardings(abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """The sharding of each leaf of the state.

    Trees with the structure of all parameters, or of one of their modules, are sharded as these are: the
    average, the optimiser's moments, a teacher. All other leaves are replicated.
    """
    whole = replicated(mesh)
    params = parameter_shardings(abstract.params, mesh)
    known = [(abstract.params, params), *((abstract.params[name], params[name]) for name in params)]
    layouts = {jax.tree.structure(tree): layout for tree, layout in known[::-1] if isinstance(tree, Mapping)}

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node) in layouts

    def layout_like_params(tree: Any) -> Any:
        # optax's tree_map_params would call init without arrays, which some optimisers do not support.
        return jax.tree.map(
            lambda node: layouts.get(jax.tree.structure(node), whole), tree, is_leaf=is_like_params
        )

    # A TrainState of shardings instead of arrays.
    leaves: dict[str, Any] = {
        "step": whole,
        "params": params,
        "opt_state": layout_like_params(abstract.opt_state),
        "ema": None if abstract.ema is None else params,
        "extra": layout_like_params(abstract.extra),
    }
    return TrainState(**leaves)
