"""The features that split cls into what it gets from each token group, and what it was."""

import jax
import jax.numpy as jnp

from vit_registers.analysis.features.forward import Forward
from vit_registers.models.cls_role import num_held_blocks


def terms_ExD(forward: Forward) -> jax.Array:
    """The terms of cls after the attention of the last block, before its MLP: BxExD, as Subject.term_names.

    One term for each token group that cls attends to, including itself, after the output projection and
    LayerScale; the projection's bias; and the skip connection (arXiv:2505.05892, equations 3 to 6). Terms
    that a model lacks, such as the skip connection with has_cls_skip=False, are 0. With use_attention_norm
    they are parts of the normalised sum; its bias goes with that of the projection.
    """
    return _terms_BxExD(forward, len(forward.model.blocks) - 1)


def terms_LxExD(forward: Forward) -> jax.Array:
    """`terms_ExD` of each block: BxLxExD. Where a block does not change cls, all but skip are 0."""
    return jnp.stack([_terms_BxExD(forward, block) for block in range(len(forward.model.blocks))], axis=1)


def head_terms_GxD(forward: Forward) -> jax.Array:
    """What cls gets from each token group in the last block, heads joined, before the projection: BxGxD."""
    terms = _head_terms(forward, len(forward.model.blocks) - 1)
    return jnp.stack([head_BxNxK.reshape(head_BxNxK.shape[0], -1) for head_BxNxK in terms], axis=1)


def _head_terms(forward: Forward, block: int) -> list[jax.Array]:
    """BxNxK for each token group: its part of the sum of values, weighted by the attention of cls.

    With use_attention_norm, its part of the normalised sum, without the bias.
    """
    weights_BxNxT, v_BxTxNxK = forward.weights_BxNxTxT(block)[:, :, 0], forward.out.taps["v"][block]
    heads = [
        jnp.einsum("bnt,btnk->bnk", weights_BxNxT[..., where], v_BxTxNxK[:, where].astype(jnp.float32))
        for where in forward.layout.groups.values()
    ]
    norm = forward.model.blocks[block].attn.norm
    if norm is None:
        return heads
    flat = norm.parts([head_BxNxK.reshape(len(head_BxNxK), -1) for head_BxNxK in heads])
    return [part_BxD.reshape(heads[0].shape) for part_BxD in flat]


def _terms_BxExD(forward: Forward, number: int) -> jax.Array:
    model, block = forward.model.model, forward.model.blocks[number]
    project = block.attn.out
    terms = [jnp.einsum("bnk,nkd->bd", one, project.kernel[...]) for one in _head_terms(forward, number)]
    bias_D = jnp.zeros(terms[0].shape[-1]) if project.bias is None else project.bias[...]
    if block.attn.norm is not None:
        assert block.attn.norm.bias is not None
        bias_NxK = block.attn.norm.bias[...].reshape(project.kernel.shape[:2])
        bias_D += jnp.einsum("nk,nkd->d", bias_NxK, project.kernel[...])
    terms.append(jnp.broadcast_to(bias_D, terms[0].shape))
    terms_BxExD = jnp.stack(terms, axis=1)
    if block.ls1 is not None:
        terms_BxExD *= block.ls1.gamma[...].reshape(1, 1, -1)
    is_held = number < num_held_blocks(model, len(forward.model.blocks))
    skip_Bx1xD = forward.resid_LxBxTxD[number][:, :1].astype(jnp.float32)
    if is_held:
        terms_BxExD = jnp.zeros_like(terms_BxExD)
    elif not model.has_cls_skip:
        skip_Bx1xD = jnp.zeros_like(skip_Bx1xD)
    return jnp.concatenate([terms_BxExD, skip_Bx1xD], axis=1)
