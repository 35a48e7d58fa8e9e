"""What dense heads read of a frozen backbone: tokens on the grid of patches."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.config import Data
from vit_registers.data.batch import normalize
from vit_registers.evaluation.features import EditsOf
from vit_registers.models.edits import NO_EDITS
from vit_registers.models.vit import ViT


class BlockTokens(NamedTuple):
    """The tokens after a block, float32."""

    patch_BxHxWxD: jax.Array
    cls_BxD: jax.Array  # the mean patch of a model without cls


def network_input(image_BxHxWxC: jax.Array, size_Bx2: jax.Array, data: Data, *, patch_size: int) -> jax.Array:
    """Normalised images, float32, padded with zeros: outside of each image's size, and to whole patches.

    The padding to a multiple of the patch is on all sides, as in DINOv2; the smaller part is above and left.
    """
    image_BxHxWxC = normalize(image_BxHxWxC, mean=data.mean, std=data.std)
    height, width = image_BxHxWxC.shape[1:3]
    is_row_BxH = jnp.arange(height)[None] < size_Bx2[:, :1]
    is_column_BxW = jnp.arange(width)[None] < size_Bx2[:, 1:]
    is_inside_BxHxW = is_row_BxH[:, :, None] & is_column_BxW[:, None]
    image_BxHxWxC = jnp.where(is_inside_BxHxW[..., None], image_BxHxWxC, 0.0)
    missing = [-side % patch_size for side in (height, width)]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in missing)
    return jnp.pad(image_BxHxWxC, ((0, 0), (top, bottom), (left, right), (0, 0)))


def block_tokens(
    model: ViT,
    image_BxHxWxC: jax.Array,
    *,
    blocks: Sequence[int],
    is_normed: bool,
    edits: EditsOf | None = None,
) -> list[BlockTokens]:
    """The tokens after `blocks`, numbers from 0 on, or from the end if negative; no gradient flows through.

    With `is_normed` they are after the final norm, also those of models that apply it after pooling, such as
    CLIP. `edits` are those of a FrozenModel.
    """
    layout = model.layout_for((image_BxHxWxC.shape[1], image_BxHxWxC.shape[2]))
    resid = model(image_BxHxWxC, edits=NO_EDITS if edits is None else edits(layout)).taps["resid"]
    outputs, found = resid[1:], []
    for block in blocks:
        token_BxTxD = jax.lax.stop_gradient(outputs[block])
        token_BxTxD = (model.norm(token_BxTxD) if is_normed else token_BxTxD).astype(jnp.float32)
        patch_BxPxD = token_BxTxD[:, layout.patches]
        cls_BxD = token_BxTxD[:, 0] if layout.has_cls else patch_BxPxD.mean(axis=1)
        patch_BxHxWxD = patch_BxPxD.reshape(len(patch_BxPxD), *layout.patch_grid, -1)
        found.append(BlockTokens(patch_BxHxWxD, cls_BxD))
    return found
