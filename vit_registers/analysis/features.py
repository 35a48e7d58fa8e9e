"""The only file of the analysis that runs a model: images -> features on disk, batch by batch."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from vit_registers.analysis.severity import neighbour_cosine
from vit_registers.analysis.store import VALID, Store, Writer
from vit_registers.data.batch import Batch, normalize
from vit_registers.models.attention import attention_weights
from vit_registers.models.tokens import Grid, TokenLayout
from vit_registers.models.vit import Outputs, ViT, static_attention


class Forward(NamedTuple):
    """One forward pass of a batch: what a feature is computed from."""

    model: ViT
    out: Outputs
    layout: TokenLayout
    image_BxHxWxC: jax.Array  # uint8

    @property
    def resid_LxBxTxD(self) -> tuple[jax.Array, ...]:
        """What goes into the first block, then what each block leaves; L is depth + 1."""
        return self.out.taps["resid"]

    def weights_BxNxTxT(self, block: int) -> jax.Array:
        """The attention weights of a block, float32. XLA shares them with the forward pass."""
        mask_TxT, bias_NxTxT = static_attention(self.model.model, self.layout)
        q, k = self.out.taps["q"][block], self.out.taps["k"][block]
        return attention_weights(q, k, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)


def norms_LxT(forward: Forward) -> jax.Array:
    """L2 norms of all tokens, before the first block and after each, before the final norm: BxLxT."""
    norms = [jnp.linalg.norm(r.astype(jnp.float32), axis=-1) for r in forward.resid_LxBxTxD]
    return jnp.stack(norms, axis=1)


def final_norms_T(forward: Forward) -> jax.Array:
    """L2 norms of all tokens after the final norm: BxT."""
    out = forward.out
    cls = None if out.cls is None else out.cls[:, None]
    groups = [g for g in (cls, out.registers, out.summaries, out.patches) if g is not None]
    return jnp.linalg.norm(jnp.concatenate(groups, axis=1).astype(jnp.float32), axis=-1)


def attention_NxExT(forward: Forward) -> jax.Array:
    """Attention of cls and each register (E queries) to all tokens in the last block: BxNxExT."""
    return forward.weights_BxNxTxT(-1)[:, :, : forward.layout.registers.stop]


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
    """What leaves the patch embedding, before positions are added: BxPxD."""
    return forward.out.taps["embed"].astype(jnp.float32)


def patches_PxD(forward: Forward) -> jax.Array:
    """The patches after the last block and before the final norm: BxPxD."""
    return forward.resid_LxBxTxD[-1][:, forward.layout.patches].astype(jnp.float32)


def extras_ExD(forward: Forward) -> jax.Array:
    """cls and registers after the last block, before the final norm: BxExD."""
    return forward.resid_LxBxTxD[-1][:, : forward.layout.registers.stop].astype(jnp.float32)


def logits_Y(forward: Forward) -> jax.Array:
    """The scores of the model's own head: BxY."""
    return forward.out.logits.astype(jnp.float32)


def image_HxWxC(forward: Forward) -> jax.Array:
    """The images as the model is shown them, before the mean is taken away, uint8."""
    return forward.image_BxHxWxC


def cls_LxD(forward: Forward) -> jax.Array:
    """cls before the first block and after each: BxLxD."""
    return jnp.stack([r[:, 0].astype(jnp.float32) for r in forward.resid_LxBxTxD], axis=1)


def register_hidden_2xRxD(forward: Forward) -> jax.Array:
    """Registers as they go into the last block, before and after its first norm: Bx2xRxD."""
    hidden = forward.resid_LxBxTxD[-2]
    normed = forward.model.blocks[-1].norm1(hidden)
    where = forward.layout.registers
    return jnp.stack([hidden[:, where].astype(jnp.float32), normed[:, where].astype(jnp.float32)], axis=1)


def terms_ExD(forward: Forward) -> jax.Array:
    """What cls is the sum of after the attention of the last block, before its MLP: BxExD, in the order of
    Subject.term_names.

    One term for each token group that cls attends to (itself among them), after the output projection and
    LayerScale; the projection's bias; and the skip connection (arXiv:2505.05892, equations 3 to 6).
    """
    block, layout = forward.model.blocks[-1], forward.layout
    weights_BxNxT, v_BxTxNxK = forward.weights_BxNxTxT(-1)[:, :, 0], forward.out.taps["v"][-1]
    project = block.attn.out
    terms = []
    for where in layout.groups.values():
        head_BxNxK = jnp.einsum(
            "bnt,btnk->bnk", weights_BxNxT[..., where], v_BxTxNxK[:, where].astype(jnp.float32)
        )
        terms.append(jnp.einsum("bnk,nkd->bd", head_BxNxK, project.kernel[...]))
    bias_D = jnp.zeros(terms[0].shape[-1]) if project.bias is None else project.bias[...]
    terms.append(jnp.broadcast_to(bias_D, terms[0].shape))
    terms_BxExD = jnp.stack(terms, axis=1)
    if block.ls1 is not None:
        terms_BxExD *= block.ls1.gamma[...].reshape(1, 1, -1)
    skip_Bx1xD = forward.resid_LxBxTxD[-2][:, :1].astype(jnp.float32)
    return jnp.concatenate([terms_BxExD, skip_Bx1xD], axis=1)


class Feature(NamedTuple):
    """How a feature is computed on the devices, which part of a model it needs, what is made of it after."""

    compute: Callable[[Forward], jax.Array]
    needs: str | None = None
    finish: Callable[[np.ndarray, TokenLayout], np.ndarray] = lambda values, layout: values


def _neighbours(feature_BxPxD: np.ndarray, layout: TokenLayout) -> np.ndarray:
    """`neighbour_cosine` as float32, NaN where there is no neighbour: Bx4xP."""
    found = neighbour_cosine(feature_BxPxD, layout.patch_grid)
    return np.where(found.is_valid_Bx4xP, found.cosine_Bx4xP, np.nan).astype(np.float32)


FEATURES: dict[str, Feature] = {
    "norms_LxT": Feature(norms_LxT),
    "final_norms_T": Feature(final_norms_T),
    "attention_NxExT": Feature(attention_NxExT),
    "mass_LxGxG": Feature(mass_LxGxG),
    "entropy_LxG": Feature(entropy_LxG),
    "embed_cosine_4xP": Feature(embed_PxD, finish=_neighbours),
    "output_cosine_4xP": Feature(patches_PxD, finish=_neighbours),
    "patches_PxD": Feature(patches_PxD),
    "extras_ExD": Feature(extras_ExD),
    "image_HxWxC": Feature(image_HxWxC),
    "logits_Y": Feature(logits_Y, needs="head"),
    "cls_LxD": Feature(cls_LxD, needs="cls"),
    "terms_ExD": Feature(terms_ExD, needs="cls"),
    "register_hidden_2xRxD": Feature(register_hidden_2xRxD, needs="registers"),
}


def extract(
    model: ViT,
    batches: Iterator[Batch],
    store: Store,
    names: tuple[str, ...],
    *,
    image_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Completes the features `names` of the store from all batches of the data set, in its order.

    Each batch is written as soon as it is there, while the next one is computed; what a stopped run has
    written is not computed again. `progress` is told how many images of how many are done.
    """
    names = store.missing((VALID, "label", *names))
    if not names:
        return

    layout = model.layout_for(image_size)

    @nnx.jit
    def compute(model: ViT, image_BxHxWxC: jax.Array) -> dict[str, jax.Array]:
        out = model(normalize(image_BxHxWxC, mean=mean, std=std))
        forward = Forward(model, out, layout, image_BxHxWxC)
        return {name: FEATURES[name].compute(forward) for name in names if name in FEATURES}

    with store.writer(names) as writer:
        begun, pending = 0, None
        for batch in batches:
            skipped = max(writer.num_done - begun, 0) if pending is None else 0
            begun += len(batch.label_B)
            if skipped >= len(batch.label_B):
                continue
            computed = compute(model, batch.image_BxHxWxC) | {VALID: batch.mask_B, "label": batch.label_B}
            computed = {name: value[skipped:] for name, value in computed.items()} if skipped else computed
            if pending is not None:
                _write(writer, pending, store, layout, progress)
            pending = computed
            if begun >= store.num_images:
                break
        if pending is not None:
            _write(writer, pending, store, layout, progress)


def _write(
    writer: Writer,
    computed: Mapping[str, jax.Array],
    store: Store,
    layout: TokenLayout,
    progress: Callable[[int, int], None],
) -> None:
    """Appends a batch, without the padding of the last one."""
    size = store.num_images - writer.num_done
    if size > 0:
        arrays = {name: np.asarray(value)[:size] for name, value in computed.items()}
        for name in arrays.keys() & FEATURES.keys():
            arrays[name] = FEATURES[name].finish(arrays[name], layout)
        writer.append(arrays)
        progress(writer.num_done, store.num_images)


def native(
    model: ViT, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[np.ndarray], tuple[dict[str, np.ndarray], Grid]]:
    """A function from one image of any size, uint8, to what the last block makes of its patches; their grid.

    That is {"q", "k", "v"}, heads joined, PxD. The image is normalised, then filled up with zeros on the
    right and below to whole patches, as LOST does it. Each new size is compiled anew.
    """
    patch = model.model.patch_size

    @nnx.jit
    def forward(model: ViT, image_1xHxWxC: jax.Array) -> tuple[jax.Array, ...]:
        height, width = image_1xHxWxC.shape[1:3]
        filled = jnp.pad(
            normalize(image_1xHxWxC, mean=mean, std=std),
            ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)),
        )
        out = model(filled)
        patches = model.layout_for(filled.shape[1:3]).patches
        last = (out.taps[name][-1][0, patches].astype(jnp.float32) for name in "qkv")
        return tuple(values.reshape(len(values), -1) for values in last)

    def apply(image_HxWxC: np.ndarray) -> tuple[dict[str, np.ndarray], Grid]:
        if model.model.channels == 1:
            image_HxWxC = np.asarray(Image.fromarray(image_HxWxC).convert("L"))[..., None]
        height, width = image_HxWxC.shape[:2]
        values = forward(model, image_HxWxC[None])
        grid = math.ceil(height / patch), math.ceil(width / patch)
        return {name: np.asarray(value) for name, value in zip("qkv", values, strict=True)}, grid

    return apply
