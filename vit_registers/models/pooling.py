"""Pooling: from all tokens to the vector that the head reads."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import attend_xla
from vit_registers.models.blocks import Dims, Mlp, dims
from vit_registers.models.initializers import Inits
from vit_registers.models.norm import LayerNorm
from vit_registers.models.tokens import TokenLayout

POOLINGS = ("cls", "gap", "map", "cls_gap", "cls_registers", "summary")
POOL_TOKENS = ("patches", "all")  # model.pool_tokens


class MapPool(nnx.Module):
    """Attention pooling (arXiv:2106.04560): a learned probe attends to tokens, then an MLP.

    Its heads and its MLP have the sizes of the blocks unless model.pool_num_heads and pool_mlp_dim set them.
    """

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        sizes = pool_dims(model, sizes)
        heads = (sizes.num_heads, sizes.width // sizes.num_heads)
        layer = functools.partial(nnx.LinearGeneral, kernel_init=init.attention, dtype=jnp.float32, rngs=rngs)
        self.probe = nnx.Param(init.probe(rngs.params(), (1, 1, sizes.width), jnp.float32))
        self.q = layer(sizes.width, heads)
        self.kv = layer(sizes.width, (2, *heads))
        self.out = layer(heads, sizes.width, axis=(-2, -1))
        self.norm = LayerNorm(sizes.width, epsilon=model.norm_eps, rngs=rngs)
        self.tokens = model.pool_tokens
        self.mlp = Mlp(dataclasses.replace(model, use_mlp_norm=False), sizes, init, rngs=rngs)

    def __call__(self, tokens_BxPxD: jax.Array) -> jax.Array:
        """pooled_BxD of the tokens that the probe attends to, usually the patches."""
        batch = tokens_BxPxD.shape[0]
        q_BxQxNxK = jnp.broadcast_to(self.q(self.probe[...]), (batch, 1, *self.q.out_features))
        kv_BxPxQxNxK = self.kv(tokens_BxPxD)
        pooled = self.out(attend_xla(q_BxQxNxK, kv_BxPxQxNxK[:, :, 0], kv_BxPxQxNxK[:, :, 1]))
        pooled += self.mlp(self.norm(pooled))[0].astype(jnp.float32)
        return pooled[:, 0]


def pool_dims(model: Model, sizes: Dims) -> Dims:
    """The sizes of attention pooling, if those of the blocks are `sizes`. Raises ConfigError."""
    num_heads, mlp_dim = model.pool_num_heads or sizes.num_heads, model.pool_mlp_dim or sizes.mlp_dim
    if sizes.width % num_heads:
        raise ConfigError(
            f"model.pool_num_heads={num_heads} does not divide the width of {sizes.width}: set a divisor"
        )
    return dataclasses.replace(sizes, num_heads=num_heads, mlp_dim=mlp_dim)


def pooled_width(model: Model) -> int:
    """The width of Outputs.pooled: that of the model, times the number of concatenated tokens."""
    joined = {"cls_gap": 2, "cls_registers": model.use_cls + model.num_registers}
    return dims(model).width * joined.get(model.pooling, 1)


def pool(pooling: str, tokens_BxTxD: jax.Array, layout: TokenLayout, map_pool: MapPool | None) -> jax.Array:
    """pooled_BxD of all tokens; cls_gap and cls_registers concatenate tokens and are wider (pooled_width)."""
    if pooling == "cls":
        return tokens_BxTxD[:, layout.cls.start]
    if pooling == "summary":
        return tokens_BxTxD[:, layout.summaries.start]
    if pooling == "cls_registers":
        return tokens_BxTxD[:, : layout.registers.stop].reshape(tokens_BxTxD.shape[0], -1)
    if map_pool is not None and map_pool.tokens == "all":
        return map_pool(tokens_BxTxD)
    patches_BxPxD = tokens_BxTxD[:, layout.patches]
    if map_pool is not None:
        return map_pool(patches_BxPxD)
    mean_BxD = patches_BxPxD.mean(axis=1)
    if pooling == "cls_gap":
        return jnp.concatenate([tokens_BxTxD[:, layout.cls.start], mean_BxD], axis=-1)
    return mean_BxD
