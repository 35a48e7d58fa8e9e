"""From images and texts to the vectors that are compared, with the parameters of ImageText (objective.py)."""

import functools
from collections.abc import Mapping
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
    edits: Edits = NO_EDITS,
) -> jax.Array:
    """Unit vectors image_BxE, float32, of normalised images: what the tower pools, projected."""
    graphdef, _ = abstract_model(model)
    pooled_BxD = build_model(graphdef, params[BACKBONE])(
        images_BxHxWxC, drop_key=drop_key, edits=edits
    ).pooled
    return unit(project(params, pooled_BxD))


def project(params: Mapping[str, Any], x_xD: jax.Array) -> jax.Array:
    """x_xE, float32: vectors of the image tower in the space of the texts; unchanged without a projection."""
    x_xD = x_xD.astype(jnp.float32)
    if IMAGE_PROJ not in params:
        return x_xD
    return x_xD @ gathered(params[IMAGE_PROJ], jnp.float32, prefix=f"{IMAGE_PROJ}/")["kernel"]


def embed_texts(text: Text, params: Mapping[str, Any], tokens_BxL: jax.Array) -> jax.Array:
    """Unit vectors text_BxE, float32, of token ids."""
    return unit(nnx.merge(_abstract_text(text), params[TEXT])(tokens_BxL).astype(jnp.float32))
