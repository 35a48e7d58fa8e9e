"""From images and texts to the vectors that are compared, with the parameters of ImageText (objective.py)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.config import Model, Text
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.norm import unit
from vit_registers.models.params import abstract_model, build_model
from vit_registers.models.partition import gathered
from vit_registers.models.text.tower import TextTower
from vit_registers.models.tokens import TokenLayout
from vit_registers.objectives.base import BACKBONE

# Keys of the parameters beside BACKBONE.
TEXT, IMAGE_PROJ, LOG_SCALE, LOGIT_BIAS = "text", "image_proj", "logit_scale", "logit_bias"


@functools.lru_cache(maxsize=8)
def _abstract_text(text: Text) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: TextTower(text, rngs=nnx.Rngs(0))), nnx.Param)[0]


def init_text(text: Text, *, key: jax.Array) -> Any:
    """The parameters of a text tower by its initializers."""
    return nnx.to_pure_dict(nnx.state(TextTower(text, rngs=nnx.Rngs(key)), nnx.Param))


def embed_images(
    model: Model,
    params: Mapping[str, Any],
    images_BxHxWxC: jax.Array,
    *,
    drop_key: jax.Array | None = None,
    edits_of: Callable[[TokenLayout], Edits] | None = None,
) -> jax.Array:
    """Unit vectors image_BxE, float32, of normalised images: what the tower pools, projected.

    `edits_of` gives the edits of the forward pass for its tokens.
    """
    vit = build_model(abstract_model(model)[0], params[BACKBONE])
    layout = vit.layout_for((images_BxHxWxC.shape[1], images_BxHxWxC.shape[2]))
    edits = NO_EDITS if edits_of is None else edits_of(layout)
    return unit(project_images(params, vit(images_BxHxWxC, drop_key=drop_key, edits=edits).pooled))


def project_images(params: Mapping[str, Any], x_xD: jax.Array) -> jax.Array:
    """x_xE, float32: vectors of the image tower in the space of the texts; unchanged without a projection."""
    x_xD = x_xD.astype(jnp.float32)
    if IMAGE_PROJ not in params:
        return x_xD
    layer = gathered(params[IMAGE_PROJ], jnp.float32, prefix=f"{IMAGE_PROJ}/")
    x_xE = x_xD @ layer["kernel"]
    if "bias" in layer:  # of weights of other code bases
        x_xE += layer["bias"].reshape(*(1,) * (x_xE.ndim - 1), -1)
    return x_xE


def embed_texts(text: Text, params: Mapping[str, Any], tokens_BxL: jax.Array) -> jax.Array:
    """Unit vectors text_BxE, float32, of token ids."""
    return unit(nnx.merge(_abstract_text(text), params[TEXT])(tokens_BxL).astype(jnp.float32))
