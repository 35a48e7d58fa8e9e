"""TrainState: what changes from step to step, created sharded."""

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
    """All that a step reads and writes. Randomness is a function of (seed, step), so it is not here."""

    step: jax.Array  # int32, steps done
    params: Any  # nested dict of float32 arrays
    opt_state: Any
    ema: Any  # averaged params, or None
    extra: Any = struct.field(default_factory=dict)  # the objective's, which no gradient trains; {} for none


def state_from(
    params: Any, extra: Any, *, settings: Optimizer, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step of a run that starts from those parameters, as its average does."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if has_average(settings) else None,
        extra=extra,
    )


def put_parameters(params: Any, taken: Mapping[tuple[str | int, ...], np.ndarray]) -> Any:
    """The parameters with those of these paths put in, each part where the parameter has it.

    Of a masked array only what is not masked is put in.
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
    """The sharding of each leaf.

    The average, and what optimiser and objective keep with the structure of all parameters or of one module
    (moments, a second copy, a teacher), are sharded as the parameters are; the rest is on every device.
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

    # A TrainState of shardings in the place of arrays.
    leaves: dict[str, Any] = {
        "step": whole,
        "params": params,
        "opt_state": layout_like_params(abstract.opt_state),
        "ema": None if abstract.ema is None else params,
        "extra": layout_like_params(abstract.extra),
    }
    return TrainState(**leaves)
