"""The linear depth head of DINOv2: logits of depth bins from patches and cls of one or several blocks.

Axis letters: B images, H x W patches or pixels, C channels, Z bins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.evaluation.segmentation.head import enlarge

NUM_BINS = 256
UPSAMPLING = 4  # of the patch grid, before the bins are decoded
_LEAST_WEIGHT = 0.1


class DepthHead(NamedTuple):
    """A 1 x 1 convolution."""

    kernel_CxZ: jax.Array
    bias_Z: jax.Array


def init_depth_head(key: jax.Array, num_channels: int) -> DepthHead:
    """A new head, uniform in +-1 / sqrt(channels), as torch initialises a convolution."""
    bound = num_channels**-0.5
    key_kernel, key_bias = jax.random.split(key)
    return DepthHead(
        jax.random.uniform(key_kernel, (num_channels, NUM_BINS), minval=-bound, maxval=bound),
        jax.random.uniform(key_bias, (NUM_BINS,), minval=-bound, maxval=bound),
    )


def depth_features(blocks: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """feature_BxHxWxC of blocks (patch_BxHxWxD, cls_BxD): patches beside cls, for one block after another."""
    parts = []
    for patch_BxHxWxD, cls_BxD in blocks:
        parts += [patch_BxHxWxD, jnp.broadcast_to(cls_BxD[:, None, None], patch_BxHxWxD.shape)]
    return jnp.concatenate(parts, axis=-1)


def decode(logit_BxHxWxZ: jax.Array, *, low: float, high: float) -> jax.Array:
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
    depth_BxHxW = decode(larger_BxHxWxZ, low=low, high=high)
    return enlarge(depth_BxHxW[..., None], size)[..., 0]
