"""Initial values of parameters, by recipe: INITS.

An initializer is a function (key, shape, dtype) -> array, as in jax.nn.initializers. A recipe is a function
of the width, the MLP dim and the fan-in of the patch embedding.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, normal, zeros

Init = Callable[..., jax.Array]


def uniform(bound: float) -> Init:
    """An initializer that draws uniformly from [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inits:
    """The initializers of one model. LayerNorm always has initial scale 1 and bias 0."""

    patch: Init
    patch_bias: Init
    attention: Init  # q, k and v kernels
    attention_out: Init  # output kernels
    mlp: Init  # first kernels
    mlp_out: Init  # last kernels
    mlp_bias: Init
    mlp_out_bias: Init
    positions: Init  # learned tables
    cls: Init
    extra: Init  # registers and summaries
    probe: Init  # of attention pooling
    pre_logits: Init
    head: Init


def big_vision(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """The initializers of big_vision's ViT, also used by the code of arXiv:2601.15506; the head is zero."""
    return Inits(
        patch=lecun_normal(),
        patch_bias=zeros,
        attention=uniform(math.sqrt(3 / width)),
        attention_out=uniform(math.sqrt(3 / width)),
        mlp=uniform(math.sqrt(6 / (width + mlp_dim))),
        mlp_out=uniform(math.sqrt(6 / (width + mlp_dim))),
        mlp_bias=normal(1e-6),
        mlp_out_bias=normal(1e-6),
        positions=normal(1 / math.sqrt(width)),
        cls=zeros,
        extra=normal(1 / math.sqrt(width)),
        probe=uniform(math.sqrt(6 / (1 + width))),
        pre_logits=lecun_normal(),
        head=zeros,
    )


def deit3(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """The initializers of DeiT-III: normal(0.02), and torch's default for the patch embedding.

    Torch truncates these normals at +-2, a hundred standard deviations; here they are not truncated.
    """
    small, patch = normal(0.02), uniform(1 / math.sqrt(patch_fan_in))
    return Inits(
        patch=patch,
        patch_bias=patch,
        attention=small,
        attention_out=small,
        mlp=small,
        mlp_out=small,
        mlp_bias=zeros,
        mlp_out_bias=zeros,
        positions=small,
        cls=small,
        extra=small,
        probe=small,
        pre_logits=small,
        head=small,
    )


def dinov2(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """The initializers of DINOv2: those of DeiT-III, and normal(1e-6) for cls and registers."""
    tiny = normal(1e-6)
    return dataclasses.replace(deit3(width, mlp_dim, patch_fan_in), cls=tiny, extra=tiny)


def open_clip(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """The initializers of OpenCLIP's image tower: torch's defaults, and normal(1 / sqrt(width)).

    The latter is for cls, positions and the projection. OpenCLIP has no registers: here they are as cls.
    """
    patch, first, last = (uniform(1 / math.sqrt(fan_in)) for fan_in in (patch_fan_in, width, mlp_dim))
    token = normal(1 / math.sqrt(width))
    return Inits(
        patch=patch,
        patch_bias=patch,
        attention=uniform(math.sqrt(6 / (4 * width))),  # of the joint kernel, width x 3 width
        attention_out=first,
        mlp=first,
        mlp_out=last,
        mlp_bias=first,
        mlp_out_bias=last,
        positions=token,
        cls=token,
        extra=token,
        probe=token,
        pre_logits=first,
        head=token,
    )


INITS: dict[str, Callable[[int, int, int], Inits]] = {
    "big_vision": big_vision,
    "deit3": deit3,
    "dinov2": dinov2,
    "open_clip": open_clip,
}
