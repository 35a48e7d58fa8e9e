"""Untrained registers of zeros, added to a trained ViT: the start of test-time registers."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from vit_registers.errors import ConfigError
from vit_registers.models.masks import parse_mask
from vit_registers.models.vit import ViT


def add_zero_registers(vit: ViT, count: int) -> ViT:
    """A model with `count` more registers of zeros, without positions, after the registers of `vit`.

    arXiv:2506.08010, algorithm 2, which appends them to the sequence: without a mask the order of tokens does
    not matter. `vit` is unchanged, and shares its parameters. Raises ConfigError if the head reads the
    registers, and for a mask from a file, which has no rows for them.
    """
    if vit.model.pooling == "cls_registers":
        raise ConfigError("model.pooling='cls_registers': the head has no inputs for more registers")
    if parse_mask(vit.model.mask).name == "file":
        raise ConfigError(f"model.mask='{vit.model.mask}': the matrix has no rows for more registers")
    own = vit.layout.num_registers
    model = dataclasses.replace(vit.model, num_registers=own + count)
    graph, wanted = nnx.split(nnx.eval_shape(lambda: ViT(model, rngs=nnx.Rngs(0))))
    have = dict(nnx.to_flat_state(nnx.state(vit)))

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        if path in have and have[path].shape == leaf.shape:
            return have[path]
        assert path in (("registers",), ("extra_pos",)), path
        width = leaf.shape[-1]
        old_1xExD = have[path][...] if path in have else jnp.zeros((1, 0, width))
        parts = (old_1xExD[:, :own], jnp.zeros((1, count, width)), old_1xExD[:, own:])
        return leaf.replace(jnp.concatenate(parts, axis=1))

    filled = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(wanted)]
    return nnx.merge(graph, nnx.from_flat_state(filled))
