"""How parameters start, recipe by recipe. INITS is the list.

An initializer is a function (key, shape, dtype) -> array, as in jax.nn.initializers. A recipe is
written for one width, mlp dim and patch fan-in.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal, normal, zeros

Init = Callable[..., jax.Array]


def uniform(bound: float) -> Init:
    """Uniform in [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inits:
    """The initializers of one model. LayerNorm starts at scale 1 and bias 0 everywhere."""

    patch: Init
    patch_bias: Init
    attention: Init  # q, k, v and output kernels
    mlp: Init
    mlp_bias: Init
    positions: Init  # learned tables
    cls: Init
    extra: Init  # registers and summaries
    probe: Init  # of attention pooling
    pre_logits: Init
    head: Init


def big_vision(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """big_vision's ViT, which the code of arXiv:2601.15506 follows: the head starts at zero."""
    del patch_fan_in
    return Inits(
        patch=lecun_normal(),
        patch_bias=zeros,
        attention=uniform(math.sqrt(3 / width)),
        mlp=uniform(math.sqrt(6 / (width + mlp_dim))),
        mlp_bias=normal(1e-6),
        positions=normal(1 / math.sqrt(width)),
        cls=zeros,
        extra=normal(1 / math.sqrt(width)),
        probe=uniform(math.sqrt(6 / (1 + width))),
        pre_logits=lecun_normal(),
        head=zeros,
    )


def deit3(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """DeiT-III: normal(0.02) throughout, except the patch embedding, which has torch's default.

    Torch truncates its normals at +-2 absolute, a hundred standard deviations: not at all.
    """
    del width, mlp_dim
    small, patch = normal(0.02), uniform(1 / math.sqrt(patch_fan_in))
    return Inits(
        patch=patch,
        patch_bias=patch,
        attention=small,
        mlp=small,
        mlp_bias=zeros,
        positions=small,
        cls=small,
        extra=small,
        probe=small,
        pre_logits=small,
        head=small,
    )


def dinov2(width: int, mlp_dim: int, patch_fan_in: int) -> Inits:
    """DINOv2: as DeiT-III, but cls and registers start next to zero, normal(1e-6)."""
    tiny = normal(1e-6)
    return dataclasses.replace(deit3(width, mlp_dim, patch_fan_in), cls=tiny, extra=tiny)


INITS: dict[str, Callable[[int, int, int], Inits]] = {
    "big_vision": big_vision,
    "deit3": deit3,
    "dinov2": dinov2,
}
