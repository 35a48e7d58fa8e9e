"""The Vision Transformer with registers and summary tokens: images -> Outputs."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.nn.initializers import zeros

from vit_registers.config import Model
from vit_registers.errors import ConfigError
from vit_registers.models import readout
from vit_registers.models.blocks import DTYPES, Block, dims, inits, rotation_at
from vit_registers.models.checks import check_model
from vit_registers.models.cls_role import cls_rows, constants_by_block, without_cls_keys
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.initializers import Init, Inits
from vit_registers.models.masks import build_mask, resolve
from vit_registers.models.norm import LayerNorm, NoNorm
from vit_registers.models.pixels import patch_channels, pixels
from vit_registers.models.pooling import MapPool, pool, pooled_width
from vit_registers.models.positions import POSITIONS, PositionRule, position_rule, sincos2d
from vit_registers.models.readout import AttentionMaps, Intermediates
from vit_registers.models.resampling import resample
from vit_registers.models.stack import ready, run_blocks
from vit_registers.models.tokens import TokenLayout, patch_grid, summary_grids


@struct.dataclass
class Outputs:
    """The outputs of a ViT. Token groups are after the final norm, float32; None if the model has none.

    With model.use_norm_after_pool the final norm applies to `pooled` only, as in CLIP and in timm's average
    pooling, and the groups are not normalised. Without model.use_final_norm nothing is.
    `taps` has the inner values of all blocks. Under jit, taps that are not read cost nothing. They are
    "embed" (BxPxD, patch embeddings before positions), "resid" (depth + 1 arrays BxTxD: the input of the
    first block, then the output of each block, before the final norm), and for each block "q", "k", "v"
    (BxTxNxK), "middle" (BxTxD, between attention and MLP) and "hidden" (BxTxF, the activations of the MLP).
    """

    logits: jax.Array | None  # BxY
    pooled: jax.Array  # BxD (wider if pooling concatenates tokens), before pre-logits and head
    cls: jax.Array | None  # BxD
    registers: jax.Array | None  # BxRxD
    summaries: jax.Array | None  # BxSxD
    patches: jax.Array  # BxPxD
    taps: dict[str, jax.Array | tuple[jax.Array, ...]]


def token_layout(model: Model) -> TokenLayout:
    """The tokens of `model` at model.image_size."""
    grid = patch_grid(model.image_size, model.patch_size)
    return TokenLayout(
        has_cls=model.use_cls,
        num_registers=model.num_registers,
        summary_grids=summary_grids(grid, model.summary_factor),
        patch_grid=grid,
    )


@functools.lru_cache(maxsize=32)
def static_attention(model: Model, layout: TokenLayout) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The constants (mask_TxT, bias_NxTxT) of `model` for `layout`; None for no mask, and for no bias."""
    rule = position_rule(model.positions)
    bias_NxTxT = None if rule.bias is None else rule.bias(layout, dims(model).num_heads)
    return without_cls_keys(model, layout, build_mask(model.mask, layout)), bias_NxTxT


class ViT(nnx.Module):
    """A Vision Transformer with the tokens, the mask and the positions that `model` (config.Model) sets.

    Parameters are float32. The attribute `model` has the mask in canonical text, with the SHA-256 of a mask
    file. Raises ConfigError for settings that exclude each other.
    """

    def __init__(self, model: Model, *, rngs: nnx.Rngs):
        check_model(model)
        self.model = model = resolve(model)
        self.layout = token_layout(model)
        static_attention(model, self.layout)  # to fail here, not in the first call
        rotation_at(model, self.layout)
        sizes = dims(model)
        init = inits(model, sizes)
        extra = POSITIONS.get(model.extra_positions, PositionRule())
        for fixed in (position_rule(model.positions).table, extra.table):
            if fixed is not None:
                fixed(self.layout.patch_grid, sizes.width)  # also to fail here
        self.patch_embed = nnx.Conv(
            patch_channels(model),
            sizes.width,
            kernel_size=(model.patch_size, model.patch_size),
            strides=model.patch_size,
            padding="VALID",
            use_bias=model.use_patch_bias,
            kernel_init=init.patch,
            bias_init=init.patch_bias,
            dtype=DTYPES[model.dtype],
            rngs=rngs,
        )
        self._make_tokens(init, sizes.width, rngs)
        norm = functools.partial(LayerNorm, sizes.width, epsilon=model.norm_eps, rngs=rngs)
        self.norm_pre = norm() if model.use_norm_pre else None
        self.blocks = nnx.List([Block(model, sizes, init, rngs=rngs) for _ in range(sizes.depth)])
        self.norm = norm() if model.use_final_norm else NoNorm()
        self.map_pool = MapPool(model, sizes, init, rngs=rngs) if model.pooling == "map" else None
        dense = functools.partial(nnx.Linear, rngs=rngs)
        pooled = pooled_width(model)
        before_head = sizes.width if model.use_pre_logits else pooled
        self.pre_logits = (
            dense(pooled, before_head, kernel_init=init.pre_logits) if model.use_pre_logits else None
        )
        self.head = (
            dense(before_head, model.num_classes, use_bias=model.use_head_bias, kernel_init=init.head)
            if model.num_classes
            else None
        )

    def _make_tokens(self, init: Inits, width: int, rngs: nnx.Rngs) -> None:
        model, layout = self.model, self.layout

        def table(initializer: Init, rows: int) -> nnx.Param | None:
            if not rows:
                return None
            return nnx.Param(initializer(rngs.params(), (1, rows, width), jnp.float32))

        is_learned = position_rule(model.positions).is_learned
        num_extra = layout.num_registers + layout.num_summaries
        self.cls_token = table(init.cls, int(model.use_cls))
        self.mask_token = table(zeros, int(model.use_mask_token))
        self.cls_pos = table(init.positions, int(model.use_cls and is_learned and model.has_cls_position))
        self.pos_embed = table(init.positions, layout.num_patches * is_learned)
        self.registers = table(init.extra, layout.num_registers * (model.registers == "learned"))
        self.summaries = table(init.extra, layout.num_summaries * (model.summaries == "learned"))
        self.extra_pos = table(init.positions, num_extra * (model.extra_positions == "learned"))

    def layout_for(self, image_size: tuple[int, int]) -> TokenLayout:
        """The tokens at another image size: only the patch grid differs."""
        return dataclasses.replace(self.layout, patch_grid=patch_grid(image_size, self.model.patch_size))

    def __call__(
        self,
        images_BxHxWxC: jax.Array,
        *,
        drop_key: jax.Array | None = None,
        crops_per_image: int = 1,
        masked_BxP: jax.Array | None = None,
        edits: Edits = NO_EDITS,
    ) -> Outputs:
        """The Outputs for float images; `drop_key` enables drop path, and random coordinates.

        `crops_per_image` consecutive rows of the batch are of one image, for model.drop_path_group.

        Patches for which `masked_BxP` is True are replaced by the mask token before positions are added.
        `edits` change the inner values, and with them taps and outputs.
        """
        layout = self._layout_of(images_BxHxWxC)
        if not isinstance(edits, Edits):
            raise ConfigError(f"edits={edits!r}: must be models.edits.Edits(...), or be left out")
        mask_TxT, bias_NxTxT = static_attention(self.model, layout)
        embed_BxPxD, resid_BxTxD = self.embed(images_BxHxWxC, layout, masked_BxP, edits)
        group = self.model.drop_path_group
        taps = run_blocks(
            self.model,
            self.blocks,
            resid_BxTxD,
            mask_TxT=mask_TxT,
            bias_NxTxT=bias_NxTxT,
            drop_key=drop_key,
            drop_group=None if group is None else group * crops_per_image,
            edits=edits,
            rotation=rotation_at(self.model, layout, drop_key),
            is_cls_1xTx1=cls_rows(self.model, layout),
        )
        is_normed_later, last_BxTxD = self.model.use_norm_after_pool, taps["resid"][-1]
        tokens_BxTxD = last_BxTxD.astype(jnp.float32) if is_normed_later else self.norm(last_BxTxD)
        pooled_BxD = pool(self.model.pooling, tokens_BxTxD, layout, self.map_pool)
        if is_normed_later:
            pooled_BxD = self.norm(pooled_BxD)
        groups = {name: tokens_BxTxD[:, where] for name, where in layout.groups.items()}
        return Outputs(
            logits=self.classify(pooled_BxD),
            pooled=pooled_BxD,
            cls=groups["cls"][:, 0] if layout.has_cls else None,
            registers=groups.get("registers"),
            summaries=groups.get("summaries"),
            patches=groups["patches"],
            taps={"embed": embed_BxPxD} | taps,
        )

    def attention(
        self,
        images_BxHxWxC: jax.Array,
        *,
        block: int | Sequence[int] = -1,
        queries: str = "cls",
        heads: str = "mean",
        edits: Edits = NO_EDITS,
    ) -> AttentionMaps:
        """The attention of `queries`: weights over all tokens, and maps on the grid of patches, float32.

        They are the probabilities of the forward pass, after the softmax, with the model's mask and bias.
        `block` is a number from 0 on, or a negative one from the end; several give the results a first axis.
        `queries` is cls, registers, summaries or patches. `heads` is "mean", or "all" for an axis of heads.
        `edits` are those of a forward pass. Raises ConfigError for tokens or blocks that the model lacks.
        """
        layout = self._layout_of(images_BxHxWxC)
        readout.query_slice(layout, queries)  # to fail before the forward pass
        taps = self(images_BxHxWxC, edits=edits).taps
        constants = constants_by_block(self.model, layout, static_attention(self.model, layout))
        return readout.attention_maps(taps, layout, constants, block=block, queries=queries, heads=heads)

    def intermediates(
        self,
        images_BxHxWxC: jax.Array,
        *,
        blocks: int | Sequence[int] | None = None,
        norm: bool = True,
        reshape: bool = True,
    ) -> Intermediates:
        """The tokens after blocks, float32: patches on their grid, and the tokens before them.

        `blocks` are numbers from 0 on, or negative ones from the end; a number n selects the last n blocks,
        and None all. With `norm` they are after the final norm, where the model applies it to tokens (not
        with model.use_norm_after_pool). Without `reshape` patches are a sequence. Raises ConfigError for
        blocks that the model lacks. Corresponds to forward_intermediates of timm.
        """
        numbers = readout.select_blocks(blocks, len(self.blocks))
        resid = self(images_BxHxWxC).taps["resid"]
        is_normed = norm and not self.model.use_norm_after_pool
        tokens = [self.norm(resid[i + 1]) if is_normed else resid[i + 1] for i in numbers]
        return readout.intermediates(tokens, self._layout_of(images_BxHxWxC), is_reshaped=reshape)

    def _layout_of(self, images_BxHxWxC: jax.Array) -> TokenLayout:
        """The tokens of images. Raises ConfigError for images that the model cannot take."""
        readout.check_images(images_BxHxWxC, self.model.channels)
        return self.layout_for((images_BxHxWxC.shape[1], images_BxHxWxC.shape[2]))

    def embed(
        self,
        images_BxHxWxC: jax.Array,
        layout: TokenLayout,
        masked_BxP: jax.Array | None = None,
        edits: Edits = NO_EDITS,
    ) -> tuple[jax.Array, jax.Array]:
        """(patch embeddings BxPxD before masking and positions, the tokens BxTxD of the first block)."""
        dtype = DTYPES[self.model.dtype]
        patches = ready(self.patch_embed, "patch_embed", dtype)(
            pixels(self.model, images_BxHxWxC).astype(dtype)
        )
        batch, width = patches.shape[0], patches.shape[-1]
        embed_BxPxD = edits.patches(patches.reshape(batch, layout.num_patches, width))
        patches_BxPxD = embed_BxPxD
        if masked_BxP is not None:
            if self.mask_token is None:
                what = "masked_BxP requires a mask token, which the model lacks"
                raise ConfigError(f"{what}: set model.use_mask_token=True")
            token_1x1xD = self.mask_token[...].astype(dtype)
            patches_BxPxD = jnp.where(masked_BxP[..., None], token_1x1xD, patches_BxPxD)
        position = self._patch_positions(layout, width)
        if position is not None:
            patches_BxPxD += position.astype(dtype)
        groups = []
        if self.cls_token is not None:
            cls_1x1xD = self.cls_token[...]
            groups.append(cls_1x1xD if self.cls_pos is None else cls_1x1xD + self.cls_pos[...])
        groups.append(self._extra_tokens(width))
        first_1xTxD = jnp.concatenate(groups, axis=1).astype(dtype)
        first_BxTxD = jnp.broadcast_to(first_1xTxD, (batch, *first_1xTxD.shape[1:]))
        tokens_BxTxD = jnp.concatenate([first_BxTxD, patches_BxPxD], axis=1)
        if self.norm_pre is not None:
            tokens_BxTxD = self.norm_pre(tokens_BxTxD).astype(dtype)
        return embed_BxPxD, tokens_BxTxD

    def _patch_positions(self, layout: TokenLayout, width: int) -> jax.Array | None:
        """The position table [1, P, D] for the patch grid of `layout`, resampled from that of training."""
        fixed, method = position_rule(self.model.positions).table, self.model.position_resampling
        if self.pos_embed is not None:
            table_PxD = self.pos_embed[...][0]
        elif fixed is not None and method == "none":
            return jnp.asarray(fixed(layout.patch_grid, width))[None]
        elif fixed is not None:
            table_PxD = fixed(self.layout.patch_grid, width)
        else:
            return None
        return jnp.asarray(resample(table_PxD, self.layout.patch_grid, layout.patch_grid, method))[None]

    def _extra_tokens(self, width: int) -> jax.Array:
        layout = self.layout
        tables = ((self.registers, layout.num_registers), (self.summaries, layout.num_summaries))
        parts = [jnp.zeros((1, count, width)) if table is None else table[...] for table, count in tables]
        extra_1xExD = jnp.concatenate(parts, axis=1)
        if self.extra_pos is not None:
            extra_1xExD += self.extra_pos[...]
        elif self.model.extra_positions == "sincos2d":
            fixed = [np.zeros((layout.num_registers, width), np.float32)]
            fixed += [sincos2d(grid, width) for grid in layout.summary_grids]
            extra_1xExD += np.concatenate(fixed)[None]
        return extra_1xExD

    def classify(self, pooled_BxD: jax.Array) -> jax.Array | None:
        """logits_BxY; None for a model without a head."""
        if self.head is None:
            return None
        if self.pre_logits is not None:
            pooled_BxD = jnp.tanh(ready(self.pre_logits, "pre_logits", jnp.float32)(pooled_BxD))
        return ready(self.head, "head", jnp.float32)(pooled_BxD)
