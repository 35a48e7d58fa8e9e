"""TrainState: what changes from step to step, created sharded."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

from vit_registers.config import Config, Model
from vit_registers.models.vit import ViT
from vit_registers.training.sharding import parameter_shardings, replicated


@struct.dataclass
class TrainState:
    """All that a step reads and writes. Randomness is a function of (seed, step), so it is not here."""

    step: jax.Array  # int32, steps done
    params: Any  # nested dict of float32 arrays
    opt_state: Any
    ema: Any  # averaged params, or None


def abstract_model(model: Model) -> tuple[nnx.GraphDef, Any]:
    """The model's graph definition, and its parameters as a nested dict of shapes: no arrays are made."""
    abstract = nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def build(graphdef: nnx.GraphDef, params: Any) -> ViT:
    """The model of a graph definition with those parameters."""
    return nnx.merge(graphdef, params)


def state_maker(config: Config, optimizer: optax.GradientTransformation) -> Callable[[], TrainState]:
    """A function without arguments that makes the first state of a run, a pure function of the config."""

    def make() -> TrainState:
        model = ViT(config.model, rngs=nnx.Rngs(config.run.seed))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        has_ema = config.optimizer.ema_decay is not None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if has_ema else None,
        )

    return make


def put_parameters(state: TrainState, taken: Mapping[tuple[str | int, ...], np.ndarray]) -> TrainState:
    """The first state of a run with the parameters of those paths put in, the average's too.

    Each part goes where the state has it; the optimiser's state does not depend on parameters.
    """

    def put(path: tuple, leaf: jax.Array) -> jax.Array:
        value = taken.get(tuple(key.key for key in path))
        if value is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    params = jax.tree_util.tree_map_with_path(put, state.params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return state.replace(params=params, ema=ema)


def state_shardings(
    abstract: TrainState, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """The sharding of each leaf: the optimiser's moments and the average lie as their parameters do."""
    whole = replicated(mesh)
    params = parameter_shardings(abstract.params, mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(
        step=whole,
        params=params,
        opt_state=opt_state,
        ema=None if abstract.ema is None else params,
    )
