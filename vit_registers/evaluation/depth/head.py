"""The linear depth head of DINOv2: logits of depth bins from patches and cls of one or several blocks.

The tokens are those of the residual stream, before the final norm, as the released heads were trained;
segmentation takes them after it. Registers and summaries are not used. A model without cls has the mean of
its patches instead of cls.

Axis letters: B images, H x W patches or pixels, C channels, Z bins.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.errors import ConfigError
from vit_registers.evaluation.dense.features import BlockTokens
from vit_registers.evaluation.segmentation.head import enlarge

UPSAMPLING = 4  # of the patch grid, before the bins are decoded
# Of the released heads, by depth of the model; even spacing for others (5 instead of 4 for a depth of 24).
RELEASED_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
_LEAST_WEIGHT = 0.1


class DepthHead(NamedTuple):
    """A 1 x 1 convolution."""

    kernel_CxZ: jax.Array
    bias_Z: jax.Array


def spread_blocks(depth: int, num_blocks: int) -> tuple[int, ...]:
    """The numbers of `num_blocks` of the `depth` blocks, from 0 on: the last, or RELEASED_BLOCKS, or even.

    Even spacing ends at the last block: block round((i + 1) depth / n) - 1 for i = 0 .. n - 1, where a half
    is rounded down. Raises ConfigError if the model has fewer blocks.
    """
    if num_blocks > depth:
        raise ConfigError(
            f"tasks.depth.num_blocks={num_blocks}: the model has {depth} blocks: must be <= {depth}"
        )
    released = RELEASED_BLOCKS.get(depth, ())
    if len(released) == num_blocks:
        return released
    return tuple(math.ceil((i + 1) * depth / num_blocks - 0.5) - 1 for i in range(num_blocks))


def init_depth_head(key: jax.Array, num_channels: int, num_bins: int) -> DepthHead:
    """A new head, uniform in +-1 / sqrt(channels), as torch initialises a convolution."""
    bound = num_channels**-0.5
    key_kernel, key_bias = jax.random.split(key)
    return DepthHead(
        jax.random.uniform(key_kernel, (num_channels, num_bins), minval=-bound, maxval=bound),
        jax.random.uniform(key_bias, (num_bins,), minval=-bound, maxval=bound),
    )


def depth_features(blocks: Sequence[BlockTokens]) -> jax.Array:
    """feature_BxHxWxC: each patch beside the cls token of its block, one block after another."""
    parts = []
    for patch_BxHxWxD, cls_BxD in blocks:
        parts += [patch_BxHxWxD, jnp.broadcast_to(cls_BxD[:, None, None], patch_BxHxWxD.shape)]
    return jnp.concatenate(parts, axis=-1)


def decode_depth(logit_BxHxWxZ: jax.Array, *, low: float, high: float) -> jax.Array:
    """depth_BxHxW: the mean of evenly spaced depths from low to high, weighted by relu(logit) + 0.1."""
    weight_BxHxWxZ = jax.nn.relu(logit_BxHxWxZ) + _LEAST_WEIGHT
    depth_Z = jnp.linspace(low, high, logit_BxHxWxZ.shape[-1])
    precision = jax.lax.Precision.HIGHEST
    total_BxHxW = jnp.einsum("bhwz,z->bhw", weight_BxHxWxZ, depth_Z, precision=precision)
    return total_BxHxW / weight_BxHxWxZ.sum(axis=-1)


def predict_depth(
    head: DepthHead, feature_BxHxWxC: jax.Array, size: tuple[int, int], *, low: float, high: float
) -> jax.Array:
    """depth_BxHxW at `size`, float32.

    The released head enlarges the features four times before the convolution. The convolution is applied
    first here, which gives the same logits, since the weights of the interpolation sum to 1, for a sixteenth
    of the work.
    """
    precision = jax.lax.Precision.HIGHEST
    feature_BxHxWxC = feature_BxHxWxC.astype(jnp.float32)
    logit_BxHxWxZ = jnp.einsum("bhwc,cz->bhwz", feature_BxHxWxC, head.kernel_CxZ, precision=precision)
    height, width = logit_BxHxWxZ.shape[1:3]
    larger_BxHxWxZ = enlarge(
        logit_BxHxWxZ + head.bias_Z[None, None, None], (UPSAMPLING * height, UPSAMPLING * width)
    )
    depth_BxHxW = decode_depth(larger_BxHxWxZ, low=low, high=high)
    return enlarge(depth_BxHxW[..., None], size)[..., 0]
