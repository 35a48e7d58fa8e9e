"""What is read from a forward pass besides its outputs: attention weights, and the tokens after blocks."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import lookup
from vit_registers.errors import ConfigError
from vit_registers.models.attention.api import attention_weights, open_to_more
from vit_registers.models.tokens import TokenLayout

Constants = tuple[np.ndarray | None, np.ndarray | None]  # (mask_TxT, bias_NxTxT)
Taps = Mapping[str, jax.Array | tuple[jax.Array, ...]]

QUERIES = ("cls", "registers", "summaries", "patches")
HEADS = ("mean", "all")


def check_images(images_BxHxWxC: jax.Array, channels: int) -> None:
    """Raises ConfigError for images that are not an array of floats of shape BxHxWxC."""
    if not isinstance(images_BxHxWxC, jax.Array | np.ndarray):
        raise ConfigError(
            f"images are of type {type(images_BxHxWxC).__name__}: must be an array of JAX or NumPy; "
            "preprocess, a method of the models that vit_registers.load returns, makes one"
        )
    if not jnp.issubdtype(images_BxHxWxC.dtype, jnp.floating):
        raise ConfigError(
            f"images are {images_BxHxWxC.dtype}: must be normalised floats; preprocess, a method of the "
            "models that vit_registers.load returns, makes them of 8-bit images"
        )
    if images_BxHxWxC.ndim != 4 or images_BxHxWxC.shape[-1] != channels:
        raise ConfigError(
            f"images of shape {images_BxHxWxC.shape}: must be [batch, height, width, {channels}]"
        )


class AttentionMaps(NamedTuple):
    """Attention weights of Q queries, float32. Each row sums to 1 over all T tokens.

    The axis N is absent for the mean over heads. Several blocks come first, as an axis L.
    """

    weights: jax.Array  # [(L,) B, (N,) Q, T]: to all tokens, in the order of the model's layout
    maps: jax.Array  # [(L,) B, (N,) Q, rows, columns]: the part on the patches


class Intermediates(NamedTuple):
    """The tokens after L blocks, float32."""

    patches: jax.Array  # [L, B, rows, columns, D], or [L, B, P, D]
    prefix: jax.Array  # [L, B, T - P, D]: cls, registers and summaries, in the order of the layout


def block_weights(taps: Taps, block: int, constants: Constants, queries: slice = slice(None)) -> jax.Array:
    """weights_BxNxQxT of a block, float32: the probabilities of its attention, with mask and bias applied.

    `taps` are those of the forward pass, and `constants` the mask and bias of the model for its tokens. Keys
    that an edit has appended come last.
    """
    q_BxTxNxK, k_BxSxNxK = taps["q"][block], taps["k"][block]
    mask_TxS, bias_NxTxS = open_to_more(*constants, k_BxSxNxK.shape[1])
    return attention_weights(
        q_BxTxNxK[:, queries],
        k_BxSxNxK,
        mask_TxT=None if mask_TxS is None else mask_TxS[queries],
        bias_NxTxT=None if bias_NxTxS is None else bias_NxTxS[:, queries],
    )


def attention_maps(
    taps: Taps,
    layout: TokenLayout,
    constants: Callable[[int], Constants],
    *,
    block: int | Sequence[int],
    queries: str,
    heads: str,
) -> AttentionMaps:
    """The AttentionMaps of a forward pass. Raises ConfigError as ViT.attention does."""
    where = query_slice(layout, queries)
    lookup(dict.fromkeys(HEADS), heads, "heads")
    is_one = _integer(block) is not None
    numbers = _block_numbers(block, len(taps["q"]), "block")
    each = [block_weights(taps, number, constants(number), where) for number in numbers]
    weights = jnp.stack([one.mean(axis=1) if heads == "mean" else one for one in each])
    weights = weights[0] if is_one else weights
    to_patches = weights[..., layout.patches]
    return AttentionMaps(weights, to_patches.reshape(*to_patches.shape[:-1], *layout.patch_grid))


def query_slice(layout: TokenLayout, queries: str) -> slice:
    """The tokens that `queries` (QUERIES) names. Raises ConfigError if the model has none of them."""
    lookup(dict.fromkeys(QUERIES), queries, "queries")
    if queries not in layout.groups:
        raise ConfigError(f"queries='{queries}': the model has none; it has {', '.join(layout.groups)}")
    return layout.groups[queries]


def select_blocks(blocks: int | Sequence[int] | None, depth: int) -> list[int]:
    """The block numbers that `blocks` selects of `depth`; see ViT.intermediates. Raises ConfigError."""
    if blocks is None:
        return list(range(depth))
    if (last := _integer(blocks)) is not None:
        if not 1 <= last <= depth:
            raise ConfigError(f"blocks={last} selects the last {last} blocks: must be 1 to {depth}")
        return list(range(depth - last, depth))
    return _block_numbers(blocks, depth, "blocks")


def intermediates(
    tokens_LxBxTxD: Sequence[jax.Array], layout: TokenLayout, *, is_reshaped: bool
) -> Intermediates:
    """The Intermediates of tokens after L blocks."""
    tokens = jnp.stack([tokens_BxTxD.astype(jnp.float32) for tokens_BxTxD in tokens_LxBxTxD])
    patches = tokens[:, :, layout.patches]
    if is_reshaped:
        patches = patches.reshape(*patches.shape[:2], *layout.patch_grid, patches.shape[-1])
    return Intermediates(patches, tokens[:, :, : layout.patches.start])


def _block_numbers(blocks: int | Sequence[int], depth: int, name: str) -> list[int]:
    """The numbers from 0 on; negative ones count from the end. Raises ConfigError."""
    given: Sequence[Any] = (blocks,)
    if isinstance(blocks, Sequence | np.ndarray | jax.Array) and not isinstance(blocks, str):
        given = blocks if np.ndim(blocks) else given
    if not len(given):
        raise ConfigError(f"{name} selects no block: give at least one of 0 to {depth - 1}")
    numbers = []
    for one in given:
        number = _integer(one)
        if number is None or not -depth <= number < depth:
            raise ConfigError(
                f"{name}={one!r}: the model has {depth} blocks: must be 0 to {depth - 1}, or "
                f"-{depth} to -1 from the end"
            )
        numbers.append(number % depth)
    return numbers


def _integer(value: Any) -> int | None:
    """The integer, also one of NumPy or JAX; None for anything else, such as True or a traced value."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
