"""A ViT with registers that are zero and were never trained: where test-time registers begin."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from vit_registers.errors import ConfigError
from vit_registers.models.vit import ViT


def add_zero_registers(vit: ViT, count: int) -> ViT:
    """A model with `count` more registers, after its own ones, of zeros and without positions.

    arXiv:2506.08010, algorithm 2. Attention without a mask does not see the order of tokens, so that it makes
    no difference that the paper puts them at the end. All parameters are those of `vit`, which stays as it
    was. Raises ConfigError where the head reads the registers.
    """
    if vit.model.pooling == "cls_registers":
        raise ConfigError("model.pooling='cls_registers': the head has no room for more registers")
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
