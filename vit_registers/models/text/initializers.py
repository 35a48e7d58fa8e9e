"""Initial values of the parameters of text towers, by recipe: TEXT_INITS.

A recipe is a function of the width, the MLP dim and the depth.
"""

import dataclasses
import math
from collections.abc import Callable

from jax.nn.initializers import lecun_normal, normal

from vit_registers.models import initializers
from vit_registers.models.initializers import Init, Inits


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInits:
    """The initializers of one text tower. LayerNorm always has initial scale 1 and bias 0."""

    token_embed: Init
    proj: Init  # its bias is zero
    blocks: Inits  # of the blocks, and `positions`


def open_clip_text(width: int, mlp_dim: int, depth: int) -> TextInits:
    """The initializers of OpenAI's and OpenCLIP's text tower; biases of MLPs have torch's default."""
    residual = normal(width**-0.5 * (2 * depth) ** -0.5)
    blocks = dataclasses.replace(
        initializers.open_clip(width, mlp_dim, patch_fan_in=1),
        attention=normal(width**-0.5),
        attention_out=residual,
        mlp=normal((2 * width) ** -0.5),
        mlp_out=residual,
        positions=normal(0.01),
    )
    return TextInits(token_embed=normal(0.02), proj=normal(width**-0.5), blocks=blocks)


def big_vision_text(width: int, mlp_dim: int, depth: int) -> TextInits:
    """The initializers of big_vision's text tower, which SigLIP has."""
    return TextInits(
        token_embed=normal(1 / math.sqrt(width)),
        proj=lecun_normal(),
        blocks=initializers.big_vision(width, mlp_dim, patch_fan_in=1),
    )


TEXT_INITS: dict[str, Callable[[int, int, int], TextInits]] = {
    "open_clip": open_clip_text,
    "big_vision": big_vision_text,
}
