"""Models and their parameters as two things: a graph definition, and nested dicts of arrays."""

import dataclasses
import functools
import math
from typing import Any

import jax
from flax import nnx

from vit_registers.config import Model
from vit_registers.models.blocks import dims
from vit_registers.models.vit import ViT


@functools.lru_cache(maxsize=8)
def abstract_model(model: Model) -> tuple[nnx.GraphDef, Any]:
    """The graph definition of a model, and its parameters as nested dicts of shapes. No array is created.

    Calls with equal settings share the dicts, so callers must not change them.
    """
    abstract = nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(abstract, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


@functools.cache
def count_parameters(model: Model) -> int:
    """The number of parameters of a model, from the shapes of one and of two of its equal blocks."""

    def count(depth: int) -> int:
        shapes = abstract_model(dataclasses.replace(model, depth=depth))[1]
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    depth, one = dims(model).depth, count(1)
    return one + (depth - 1) * (count(2) - one) if depth else count(0)


def build_model(graphdef: nnx.GraphDef, params: Any) -> ViT:
    """The model of a graph definition with those parameters."""
    return nnx.merge(graphdef, params)


def init_params(model: Model, *, key: jax.Array) -> Any:
    """The parameters by the model's initializers, a pure function of the model's settings and the key."""
    return nnx.to_pure_dict(nnx.state(ViT(model, rngs=nnx.Rngs(key)), nnx.Param))
