"""The features by name: functions of one forward pass of a batch."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.analysis.features.forward import Forward
from vit_registers.analysis.features.terms import head_terms_GxD, terms_ExD, terms_LxExD
from vit_registers.analysis.measures.severity import neighbour_cosine
from vit_registers.models.tokens import TokenLayout

TEXT_TOWER = "text tower"  # the part that models of images and texts have
DEPTHS_SHOWN = 7


def _norms(values_LxBxTxD: Iterable[jax.Array]) -> jax.Array:
    norms = [jnp.linalg.norm(values_BxTxD.astype(jnp.float32), axis=-1) for values_BxTxD in values_LxBxTxD]
    return jnp.stack(norms, axis=1)


def norms_LxT(forward: Forward) -> jax.Array:
    """L2 norms of all tokens, before the first block and after each, before the final norm: BxLxT."""
    return _norms(forward.resid_LxBxTxD)


def final_norms_T(forward: Forward) -> jax.Array:
    """L2 norms of all tokens after the final norm: BxT."""
    out = forward.out
    cls = None if out.cls is None else out.cls[:, None]
    groups = [group for group in (cls, out.registers, out.summaries, out.patches) if group is not None]
    return jnp.linalg.norm(jnp.concatenate(groups, axis=1).astype(jnp.float32), axis=-1)


def attention_NxExT(forward: Forward) -> jax.Array:
    """Attention of cls, each register and each summary (E) to all tokens in the last block: BxNxExT."""
    return forward.weights_BxNxTxT(-1)[:, :, : forward.layout.summaries.stop]


def center_T(forward: Forward) -> jax.Array:
    """Attention of the middle patch to all tokens in the last block, mean over heads: BxT.

    On even sides it is below and right of the centre, as in `probes.choose_tokens`.
    """
    rows, columns = forward.layout.patch_grid
    middle = forward.layout.patches.start + rows // 2 * columns + columns // 2
    return forward.weights_BxNxTxT(-1)[:, :, middle].mean(1)


def mass_LxGxG(forward: Forward) -> jax.Array:
    """Attention from each token group to each, per block, mean over heads and queries: BxLxGxG."""
    groups = tuple(forward.layout.groups.values())
    blocks = []
    for block in range(len(forward.model.blocks)):
        weights = forward.weights_BxNxTxT(block)
        to_BxTxG = jnp.stack([weights[..., where].sum(-1).mean(1) for where in groups], axis=-1)
        blocks.append(jnp.stack([to_BxTxG[:, where].mean(1) for where in groups], axis=1))
    return jnp.stack(blocks, axis=1)


def entropy_LxG(forward: Forward) -> jax.Array:
    """Entropy of each token group's attention, per block, in nats, mean over heads and queries: BxLxG."""
    groups = tuple(forward.layout.groups.values())
    blocks = []
    for block in range(len(forward.model.blocks)):
        entropy_BxT = jax.scipy.special.entr(forward.weights_BxNxTxT(block)).sum(-1).mean(1)
        blocks.append(jnp.stack([entropy_BxT[:, where].mean(1) for where in groups], axis=1))
    return jnp.stack(blocks, axis=1)


def embed_PxD(forward: Forward) -> jax.Array:
    """The output of the patch embedding, before positions are added: BxPxD."""
    return jnp.asarray(forward.out.taps["embed"], jnp.float32)


def patches_PxD(forward: Forward) -> jax.Array:
    """The patches after the last block and before the final norm: BxPxD."""
    return forward.resid_LxBxTxD[-1][:, forward.layout.patches].astype(jnp.float32)


def depths_shown(depth: int) -> list[int]:
    """At most DEPTHS_SHOWN numbers of blocks from 0 to `depth`, evenly spaced, with both ends."""
    return np.unique(np.linspace(0, depth, DEPTHS_SHOWN).round().astype(int)).tolist()


def patches_SxPxD(forward: Forward) -> jax.Array:
    """The patches before the final norm, after the numbers of blocks of `depths_shown`: BxSxPxD."""
    resid_LxBxTxD, patches = forward.resid_LxBxTxD, forward.layout.patches
    shown = [resid_LxBxTxD[i][:, patches] for i in depths_shown(len(resid_LxBxTxD) - 1)]
    return jnp.stack(shown, axis=1).astype(jnp.float32)


def extras_ExD(forward: Forward) -> jax.Array:
    """cls, registers and summaries after the last block, before the final norm: BxExD."""
    return forward.resid_LxBxTxD[-1][:, : forward.layout.summaries.stop].astype(jnp.float32)


def logits_Y(forward: Forward) -> jax.Array:
    """The logits of the model's head: BxY."""
    return jnp.asarray(forward.out.logits, jnp.float32)


def image_HxWxC(forward: Forward) -> jax.Array:
    """The images given to the model, before normalisation, uint8."""
    return forward.image_BxHxWxC


def cls_LxD(forward: Forward) -> jax.Array:
    """cls before the first block and after each: BxLxD."""
    return jnp.stack([r[:, 0].astype(jnp.float32) for r in forward.resid_LxBxTxD], axis=1)


def register_hidden_2xRxD(forward: Forward) -> jax.Array:
    """Registers at the input of the last block, before and after its first norm: Bx2xRxD."""
    hidden = forward.resid_LxBxTxD[-2]
    normed = forward.model.blocks[-1].norm1(hidden)
    where = forward.layout.registers
    return jnp.stack([hidden[:, where].astype(jnp.float32), normed[:, where].astype(jnp.float32)], axis=1)


def pooled_D(forward: Forward) -> jax.Array:
    """What the model pools, which a model of images and texts projects: BxD (wider if it joins tokens)."""
    return forward.out.pooled.astype(jnp.float32)


def cls_D(forward: Forward) -> jax.Array:
    """cls after the last block and the final norm: BxD."""
    cls_BxD = forward.out.cls
    assert cls_BxD is not None  # Feature.needs
    return cls_BxD.astype(jnp.float32)


def frozen_2xD(forward: Forward) -> jax.Array:
    """What tasks of frozen features read: cls, and the mean of the patches, after the final norm: Bx2xD.

    Models without cls have the mean twice. The norm is applied to tokens also where the model applies it
    after pooling, as in evaluation/features.py.
    """
    layout, tokens_BxTxD = forward.layout, forward.model.norm(forward.resid_LxBxTxD[-1])
    tokens_BxTxD = tokens_BxTxD.astype(jnp.float32)
    mean_BxD = tokens_BxTxD[:, layout.patches].mean(axis=1)
    return jnp.stack([tokens_BxTxD[:, 0] if layout.has_cls else mean_BxD, mean_BxD], axis=1)


def middle_norms_LxT(forward: Forward) -> jax.Array:
    """L2 norms of all tokens between attention and MLP of each block: BxLxT."""
    return _norms(forward.out.taps["middle"])


def cls_attention_L(forward: Forward) -> jax.Array:
    """The largest attention of cls to a patch in each block, after the mean over heads: BxL."""
    blocks = range(len(forward.model.blocks))
    to_BxT = (forward.weights_BxNxTxT(block)[:, :, 0].mean(1) for block in blocks)
    return jnp.stack([weights[:, forward.layout.patches].max(1) for weights in to_BxT], axis=1)


def neurons_2xLxF(forward: Forward) -> jax.Array:
    """Mean absolute activations of the MLPs on the outliers of an image and on its other patches: Bx2xLxF.

    rows: `is_outlier_BxP`. Zero if an image has no such patches.
    """
    is_outlier_BxP = forward.rows["is_outlier_BxP"]
    blocks = []
    for hidden_BxTxF in forward.out.taps["hidden"]:
        size_BxPxF = jnp.abs(hidden_BxTxF[:, forward.layout.patches].astype(jnp.float32))
        means = [
            jnp.einsum("bpf,bp->bf", size_BxPxF, where / jnp.maximum(where.sum(1, keepdims=True), 1))
            for where in (is_outlier_BxP, ~is_outlier_BxP)
        ]
        blocks.append(jnp.stack(means, axis=1))
    return jnp.stack(blocks, axis=2)


def neuron_maps_ExP(forward: Forward) -> jax.Array:
    """Activations of single neurons on the patches: BxExP. values: `neuron_Ex2`, the block and its neuron."""
    maps = []
    for at_block, neuron in forward.values["neuron_Ex2"]:
        activation_BxP = 0.0
        for block, hidden_BxTxF in enumerate(forward.out.taps["hidden"]):
            own_BxP = jnp.take(hidden_BxTxF[:, forward.layout.patches], neuron, axis=-1)
            activation_BxP += jnp.where(at_block == block, own_BxP.astype(jnp.float32), 0.0)
        maps.append(activation_BxP)
    return jnp.stack(maps, axis=1)


def register_kv_LxCxNxK(forward: Forward) -> jax.Array:
    """Key and value (C = 2) of the last register in each block: BxLx2xNxK."""
    last, taps = forward.layout.registers.stop - 1, forward.out.taps
    blocks = [jnp.stack([k[:, last], v[:, last]], 1) for k, v in zip(taps["k"], taps["v"], strict=True)]
    return jnp.stack(blocks, axis=1).astype(jnp.float32)


class Feature(NamedTuple):
    """The computation of a feature on the devices, and what follows on the host (`finish`).

    `needs` is the part of a model that it requires, or "intervention": its values and rows. Large features
    are kept of the first `max_images` only, so that 50,000 images of a ViT-L fit on a laptop's disk. In
    features that `has_undefined`, NaN marks undefined values; in all others it is an error of the model.
    """

    compute: Callable[[Forward], jax.Array]
    needs: str | None = None
    finish: Callable[[np.ndarray, TokenLayout], np.ndarray] = lambda values, layout: values
    max_images: int | None = None
    has_undefined: bool = False


def _neighbours(feature_BxPxD: np.ndarray, layout: TokenLayout) -> np.ndarray:
    """`neighbour_cosine` as float32, Bx4xP: NaN without a neighbour, infinity if features are not finite."""
    is_finite_B = np.all(np.isfinite(feature_BxPxD), axis=(1, 2))
    found = neighbour_cosine(np.where(is_finite_B[:, None, None], feature_BxPxD, 0.0), layout.patch_grid)
    cosine_Bx4xP = np.where(found.is_valid_Bx4xP, found.cosine_Bx4xP, np.nan)
    cosine_Bx4xP[~is_finite_B] = np.inf
    return cosine_Bx4xP.astype(np.float32)


_MANY, _SOME, _FEW = 10_000, 2_000, 200
FEATURES: dict[str, Feature] = {
    "norms_LxT": Feature(norms_LxT),
    "final_norms_T": Feature(final_norms_T),
    "attention_NxExT": Feature(attention_NxExT),
    "center_T": Feature(center_T),
    "mass_LxGxG": Feature(mass_LxGxG),
    "entropy_LxG": Feature(entropy_LxG),
    "embed_cosine_4xP": Feature(embed_PxD, finish=_neighbours, has_undefined=True),
    "output_cosine_4xP": Feature(patches_PxD, finish=_neighbours, has_undefined=True),
    "patches_PxD": Feature(patches_PxD, max_images=_MANY),
    "patches_SxPxD": Feature(patches_SxPxD, max_images=_FEW),
    "extras_ExD": Feature(extras_ExD),
    "image_HxWxC": Feature(image_HxWxC, max_images=_MANY),
    "logits_Y": Feature(logits_Y, needs="head"),
    "cls_LxD": Feature(cls_LxD, needs="cls"),
    "cls_D": Feature(cls_D, needs="cls"),
    "pooled_D": Feature(pooled_D, needs=TEXT_TOWER),
    "frozen_2xD": Feature(frozen_2xD),
    "terms_ExD": Feature(terms_ExD, needs="cls"),
    "terms_LxExD": Feature(terms_LxExD, needs="cls", max_images=_SOME),
    "head_terms_GxD": Feature(head_terms_GxD, needs="cls"),
    "register_hidden_2xRxD": Feature(register_hidden_2xRxD, needs="registers", max_images=_MANY),
    "middle_norms_LxT": Feature(middle_norms_LxT),
    "cls_attention_L": Feature(cls_attention_L, needs="cls"),
    "neurons_2xLxF": Feature(neurons_2xLxF, needs="intervention"),
    "neuron_maps_ExP": Feature(neuron_maps_ExP, needs="intervention"),
    "register_kv_LxCxNxK": Feature(register_kv_LxCxNxK, needs="registers"),
}
LIMITS = {name: one.max_images for name, one in FEATURES.items() if one.max_images is not None}
