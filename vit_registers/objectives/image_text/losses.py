"""CLIP's and SigLIP's losses over the global batch, in chunks, so that no device holds all pairs of a batch.

Each device compares its own rows with all columns, which it gathers: features are small, logits are not. It
holds the logits of its rows and of one chunk of columns at a time, and computes them again in the backward
pass. Axis letters beside those of models/tokens.py: E embedding width, R rows of a device, M columns of a
chunk, U chunks.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vit_registers.models.partition import batch_axes

_NO_PAIR = -1e30  # a logit that has no share in a softmax; -inf would give its gradient a NaN


class Side(NamedTuple):
    """Vectors of one side of the pairs, and what they are compared with."""

    x_BxE: jax.Array  # float32 unit vectors; zeros where group_B is -1
    pair_B: jax.Array  # int32: the number of the pair
    group_B: jax.Array  # int32: the group, within which pairs are compared; -1: left out


def clip_losses(
    image_BxE: jax.Array,
    text_BxE: jax.Array,
    log_scale: jax.Array,
    mask_B: jax.Array,
    *,
    chunk: int,
    group: int | None = None,
) -> jax.Array:
    """loss_B of CLIP (arXiv:2103.00020), float32; 0 where mask_B is False.

    The mean of two cross-entropies of softmaxes of exp(log_scale) f g: of an image over all texts, and of a
    text over all images; the loss of a batch is the mean over its examples. `image_BxE` and `text_BxE` are
    unit vectors, and row i of both is a pair. `chunk` is the number of columns whose logits are in memory.
    With `group`, each `group` consecutive examples are a batch of their own.
    """
    image, text = _sides(image_BxE, text_BxE, mask_B, group)
    scale = jnp.exp(log_scale.astype(jnp.float32))

    def softmax(logits_RxM: jax.Array, is_compared_RxM: jax.Array, is_pair_RxM: jax.Array) -> jax.Array:
        del is_pair_RxM
        return jax.nn.logsumexp(jnp.where(is_compared_RxM, logits_RxM, _NO_PAIR), axis=1)

    own_B = scale * (image.x_BxE * text.x_BxE).sum(axis=-1)
    zero = jnp.zeros_like(scale)
    over_texts_B = _over_chunks(softmax, image, text, scale, zero, chunk, jax.nn.logsumexp)
    over_images_B = _over_chunks(softmax, text, image, scale, zero, chunk, jax.nn.logsumexp)
    return jnp.where(mask_B, (over_texts_B + over_images_B) / 2 - own_B, 0.0)


def siglip_losses(
    image_BxE: jax.Array,
    text_BxE: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    mask_B: jax.Array,
    *,
    chunk: int,
    group: int | None = None,
) -> jax.Array:
    """loss_B of SigLIP (arXiv:2303.15343), float32; 0 where mask_B is False. Arguments: clip_losses.

    The sum over all texts of -log sigmoid(+-(exp(log_scale) f g + bias)), + for the image's own text; the
    loss of a batch is the mean over its examples.
    """
    image, text = _sides(image_BxE, text_BxE, mask_B, group)

    def sigmoid(logits_RxM: jax.Array, is_compared_RxM: jax.Array, is_pair_RxM: jax.Array) -> jax.Array:
        loss_RxM = jax.nn.softplus(jnp.where(is_pair_RxM, -logits_RxM, logits_RxM))
        return jnp.where(is_compared_RxM, loss_RxM, 0.0).sum(axis=1)

    scale, bias = jnp.exp(log_scale.astype(jnp.float32)), bias.astype(jnp.float32)
    loss_B = _over_chunks(sigmoid, image, text, scale, bias, chunk, jnp.sum)
    return jnp.where(mask_B, loss_B, 0.0)


def _sides(
    image_BxE: jax.Array, text_BxE: jax.Array, mask_B: jax.Array, group: int | None
) -> tuple[Side, Side]:
    number_B = jnp.arange(len(mask_B), dtype=jnp.int32)
    group_B = jnp.where(mask_B, number_B // (group or len(mask_B)), -1)

    def side(x_BxE: jax.Array) -> Side:
        # What is left out may be anything, also NaN, whose product with a gradient of 0 is NaN.
        x_BxE = jnp.where(mask_B[:, None], x_BxE.astype(jnp.float32), 0.0)
        return Side(x_BxE, number_B, group_B)

    return side(image_BxE), side(text_BxE)


def _over_chunks(
    of_chunk: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    rows: Side,
    columns: Side,
    scale: jax.Array,
    bias: jax.Array,
    chunk: int,
    combine: Callable[..., jax.Array],
) -> jax.Array:
    """combine(values of all chunks UxB, axis=0) for each row; `of_chunk` gives the value of one chunk.

    Its arguments are logits, whether they are compared, and whether they are those of a pair.
    """
    axes = batch_axes()

    def on_device(rows: Side, columns: Side, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if axes:
            # The transpose sums the gradients of all devices, and each keeps those of its own columns.
            columns = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), columns)

        @jax.checkpoint
        def one(part: Side) -> jax.Array:
            dots_RxM = jnp.einsum("re,me->rm", rows.x_BxE, part.x_BxE, precision=jax.lax.Precision.HIGHEST)
            is_compared_RxM = rows.group_B[:, None] == part.group_B[None]
            is_pair_RxM = rows.pair_B[:, None] == part.pair_B[None]
            return of_chunk(scale * dots_RxM + bias, is_compared_RxM, is_pair_RxM)

        return combine(jax.lax.map(one, _chunks(columns, chunk)), axis=0)

    if not axes:
        return on_device(rows, columns, scale, bias)
    split, whole = PartitionSpec(axes), PartitionSpec()
    over_mesh = jax.shard_map(
        on_device,
        in_specs=(split, split, whole, whole),
        out_specs=split,
        check_vma=False,
    )
    return over_mesh(rows, columns, scale, bias)


def _chunks(columns: Side, chunk: int) -> Side:
    """The columns with a leading axis of chunks, padded with columns that are compared with nothing."""
    number = len(columns.pair_B)
    count = math.ceil(number / chunk)
    length = math.ceil(number / count)
    missing = count * length - number

    def cut(x: jax.Array, filler: int) -> jax.Array:
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=filler)
        return padded.reshape(count, length, *x.shape[1:])

    return Side(cut(columns.x_BxE, 0), cut(columns.pair_B, -1), cut(columns.group_B, -2))
