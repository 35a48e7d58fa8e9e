"""Pooling: from all tokens to the vector that the head reads."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.config import Model
from vit_registers.models.attention.api import attend_xla
from vit_registers.models.blocks import Dims, Mlp, dims
from vit_registers.models.initializers import Inits
from vit_registers.models.norm import LayerNorm
from vit_registers.models.tokens import TokenLayout

POOLINGS = ("cls", "gap", "map", "cls_gap", "cls_registers", "summary")


class MapPool(nnx.Module):
    """Attention pooling (arXiv:2106.04560): a learned probe attends to the patches, then an MLP."""

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        heads = (sizes.num_heads, sizes.width // sizes.num_heads)
        layer = functools.partial(nnx.LinearGeneral, kernel_init=init.attention, dtype=jnp.float32, rngs=rngs)
        self.probe = nnx.Param(init.probe(rngs.params(), (1, 1, sizes.width), jnp.float32))
        self.q = layer(sizes.width, heads)
        self.kv = layer(sizes.width, (2, *heads))
        self.out = layer(heads, sizes.width, axis=(-2, -1))
        self.norm = LayerNorm(sizes.width, epsilon=model.norm_eps, rngs=rngs)
        self.mlp = Mlp(model, sizes, init, rngs=rngs)

    def __call__(self, patches_BxPxD: jax.Array) -> jax.Array:
        """pooled_BxD."""
        batch = patches_BxPxD.shape[0]
        q_BxQxNxK = jnp.broadcast_to(self.q(self.probe[...]), (batch, 1, *self.q.out_features))
        kv_BxPxQxNxK = self.kv(patches_BxPxD)
        pooled = self.out(attend_xla(q_BxQxNxK, kv_BxPxQxNxK[:, :, 0], kv_BxPxQxNxK[:, :, 1]))
        pooled += self.mlp(self.norm(pooled))[0].astype(jnp.float32)
        return pooled[:, 0]


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
    patches_BxPxD = tokens_BxTxD[:, layout.patches]
    if map_pool is not None:
        return map_pool(patches_BxPxD)
    mean_BxD = patches_BxPxD.mean(axis=1)
    if pooling == "cls_gap":
        return jnp.concatenate([tokens_BxTxD[:, layout.cls.start], mean_BxD], axis=-1)
    return mean_BxD
