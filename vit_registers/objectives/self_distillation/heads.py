"""The projection head of DINO (arXiv:2104.14294), for cls tokens and for masked patches (iBOT).

Axis letters beside those of models/tokens.py: M rows (crops or masked patches), E bottleneck width,
Z prototypes.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import ones, truncated_normal, uniform, zeros

from vit_registers.models.activations import ACTIVATIONS
from vit_registers.models.norm import unit
from vit_registers.models.partition import gathered

LAST_LAYER = "last_layer"  # the parameters {"g": Z, "v": ExZ} of the weight-normed layer


def init_head(key: jax.Array, *, width: int, hidden: int, bottleneck: int, num_prototypes: int) -> Any:
    """{"mlp": {0, 1, 2: kernel and bias}, "last_layer": {"g": Z, "v": ExZ}}, float32.

    As in DINOv2's code: the MLP from a truncated normal of 0.02, v from torch's default for linear layers,
    as it is made after the initializer has run, and g = 1.
    """
    sizes = (width, hidden, hidden, bottleneck)
    keys = jax.random.split(key, 4)
    small = truncated_normal(0.02, lower=-100.0, upper=100.0)  # torch truncates at +-2, not at 2 deviations
    layers = {
        i: {"kernel": small(keys[i], shape, jnp.float32), "bias": zeros(key, shape[1:], jnp.float32)}
        for i, shape in enumerate(itertools.pairwise(sizes))
    }
    bound = 1 / math.sqrt(bottleneck)
    v_ExZ = uniform(2 * bound)(keys[-1], (bottleneck, num_prototypes), jnp.float32) - bound
    return {"mlp": layers, LAST_LAYER: {"g": ones(key, (num_prototypes,), jnp.float32), "v": v_ExZ}}


def bottleneck(head: Any, x_xD: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Unit vectors of width E, the input of the last layer: an MLP with exact GELUs, divided by its norm.

    The products are computed in `dtype`, the norm in float32.
    """
    gelu, layers = ACTIVATIONS["gelu"], gathered(head["mlp"], dtype, prefix="_head/mlp/")
    x = x_xD.astype(dtype)
    for i, layer in sorted(layers.items()):
        x = x @ layer["kernel"].astype(dtype) + layer["bias"].astype(dtype).reshape(*(1,) * (x.ndim - 1), -1)
        if i < len(layers) - 1:
            x = gelu(x)
    return unit(x.astype(jnp.float32))


def prototypes(head: Any) -> jax.Array:
    """The kernel ExZ of the last layer: g * v / |v|, one norm and one g per prototype."""
    layer = gathered(head[LAST_LAYER], jnp.float32, prefix=f"_head/{LAST_LAYER}/")
    norm_1xZ = jnp.sqrt(jnp.square(layer["v"]).sum(axis=0, keepdims=True))
    return layer["g"][None] * layer["v"] / norm_1xZ


def logits(head: Any, x_MxD: jax.Array) -> jax.Array:
    """The logits MxZ of the head, before any temperature."""
    return bottleneck(head, x_MxD) @ prototypes(head)
