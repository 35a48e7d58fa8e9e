"""An image tower and a text tower whose embeddings are compared."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal

from vit_registers.config import Text
from vit_registers.errors import ConfigError
from vit_registers.models.norm import unit
from vit_registers.models.pooling import pooled_width
from vit_registers.models.stack import ready
from vit_registers.models.text.tower import TextTower
from vit_registers.models.vit import ViT


class ImageTextModel(nnx.Module):
    """A model of images and texts, such as CLIP and SigLIP.

    `vit` is the image tower, without a head, and `text` the text tower. `image_proj` maps what the image
    tower pools to the width of embeddings; None if that is its width already, as in SigLIP. `logit_scale` is
    the logarithm of the scale of cosines, and `logit_bias` is added to logits; None in CLIP. The parameters
    have the names of those of the objective image_text. Raises ConfigError if the towers do not fit.
    """

    def __init__(
        self,
        vit: ViT,
        text: TextTower,
        *,
        has_image_proj: bool,
        has_image_proj_bias: bool = False,
        has_logit_bias: bool = False,
        rngs: nnx.Rngs,
    ):
        if vit.model.num_classes:
            raise ConfigError(
                f"model.num_classes={vit.model.num_classes}: the image tower of a model of images and texts "
                "has no head: must be 0"
            )
        pooled, width = pooled_width(vit.model), text.text.embed_dim
        if not has_image_proj and pooled != width:
            raise ConfigError(
                f"text.embed_dim={width}: must be the width {pooled} of the image tower, which has no "
                "projection"
            )
        self.vit, self.text = vit, text
        self.image_proj = (
            nnx.Linear(
                pooled, width, use_bias=has_image_proj_bias, kernel_init=normal(pooled**-0.5), rngs=rngs
            )
            if has_image_proj
            else None
        )
        self.logit_scale = nnx.Param(jnp.zeros((), jnp.float32))
        self.logit_bias = nnx.Param(jnp.zeros((), jnp.float32)) if has_logit_bias else None

    def embed_images(self, images_BxHxWxC: jax.Array) -> jax.Array:
        """embedding_BxE of images, float32 and not normalised."""
        pooled_BxD = self.vit(images_BxHxWxC).pooled.astype(jnp.float32)
        return pooled_BxD if self.image_proj is None else self.project(pooled_BxD)

    def project(self, pooled_xD: jax.Array) -> jax.Array:
        """Vectors of the image tower in the space of embeddings, of any leading axes."""
        if self.image_proj is None:
            return pooled_xD
        return ready(self.image_proj, "image_proj", jnp.float32)(pooled_xD)

    def embed_texts(self, tokens_BxL: jax.Array) -> jax.Array:
        """embedding_BxE of texts, float32 and not normalised; see TextTower."""
        return self.text(tokens_BxL)

    def __call__(self, images_BxHxWxC: jax.Array, tokens_NxL: jax.Array) -> jax.Array:
        """logits_BxN of each image and each text: exp(logit_scale) * cosine + logit_bias."""
        image_BxE, text_NxE = unit(self.embed_images(images_BxHxWxC)), unit(self.embed_texts(tokens_NxL))
        logits_BxN = jnp.exp(self.logit_scale[...]) * (image_BxE @ text_NxE.T)
        return logits_BxN if self.logit_bias is None else logits_BxN + self.logit_bias[...]


Kind = TypeVar("Kind", bound=ImageTextModel)


def build_image_text(
    make_vit: Callable[[nnx.Rngs], ViT], text: Text, params: Mapping[str, Any], kind: type[Kind]
) -> Kind:
    """The model of class `kind` with `params`, nested dicts by the names of its parts.

    `make_vit` makes the image tower. What is not in `params`, of "image_proj" and "logit_bias", the model
    does not have.
    """

    def make() -> Kind:
        rngs = nnx.Rngs(0)
        return kind(
            make_vit(rngs),
            TextTower(text, rngs=rngs),
            has_image_proj="image_proj" in params,
            has_image_proj_bias="bias" in params.get("image_proj", {}),
            has_logit_bias="logit_bias" in params,
            rngs=rngs,
        )

    return nnx.merge(nnx.split(nnx.eval_shape(make), nnx.Param)[0], dict(params))
