"""The linear segmentation head of DINOv2: batch norm of the patch features, then a 1 x 1 convolution.

Axis letters: B images, H x W patches or pixels, C channels, Y classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_registers.data.sources.dense import IGNORED

_EPSILON = 1e-5
_MOMENTUM = 0.1  # the share of a batch in the running statistics


class SegmentationHead(NamedTuple):
    """What is trained."""

    scale_C: jax.Array
    shift_C: jax.Array
    kernel_CxY: jax.Array
    bias_Y: jax.Array


class Statistics(NamedTuple):
    """The running mean and variance of the features, which evaluation uses."""

    mean_C: jax.Array
    variance_C: jax.Array


def init_segmentation_head(
    key: jax.Array, num_channels: int, num_classes: int
) -> tuple[SegmentationHead, Statistics]:
    """A new head: kernel N(0, 0.01), as the released heads start; and its statistics, 0 and 1."""
    ones_C, zeros_C = jnp.ones(num_channels), jnp.zeros(num_channels)
    kernel_CxY = 0.01 * jax.random.normal(key, (num_channels, num_classes))
    return SegmentationHead(ones_C, zeros_C, kernel_CxY, jnp.zeros(num_classes)), Statistics(zeros_C, ones_C)


def segmentation_logits(
    head: SegmentationHead, statistics: Statistics, feature_BxHxWxC: jax.Array, *, is_training: bool
) -> tuple[jax.Array, Statistics]:
    """(logit_BxHxWxY, statistics), in float32.

    Training normalises by the mean and variance of the whole batch, over all devices, as synchronised batch
    norm does, and updates the statistics (the variance with n - 1). Evaluation normalises by the statistics.
    """
    feature_BxHxWxC = feature_BxHxWxC.astype(jnp.float32)
    mean_C, variance_C = statistics
    if is_training:
        mean_C = feature_BxHxWxC.mean(axis=(0, 1, 2))
        variance_C = jnp.square(feature_BxHxWxC - mean_C[None, None, None]).mean(axis=(0, 1, 2))
        number = feature_BxHxWxC[..., 0].size
        unbiased_C = variance_C * (number / max(number - 1, 1))
        statistics = Statistics(
            statistics.mean_C + _MOMENTUM * (mean_C - statistics.mean_C),
            statistics.variance_C + _MOMENTUM * (unbiased_C - statistics.variance_C),
        )
    factor_C = head.scale_C * jax.lax.rsqrt(variance_C + _EPSILON)
    factor_C, mean_C, shift_C = (x[None, None, None] for x in (factor_C, mean_C, head.shift_C))
    normed_BxHxWxC = (feature_BxHxWxC - mean_C) * factor_C + shift_C
    precision = jax.lax.Precision.HIGHEST
    logit_BxHxWxY = jnp.einsum("bhwc,cy->bhwy", normed_BxHxWxC, head.kernel_CxY, precision=precision)
    return logit_BxHxWxY + head.bias_Y[None, None, None], statistics


def enlarge(x_BxHxWxY: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The maps at (height, width) by bilinear interpolation between pixel centres, without antialiasing."""
    shape = (x_BxHxWxY.shape[0], *size, x_BxHxWxY.shape[3])
    return jax.image.resize(x_BxHxWxY, shape, "bilinear", antialias=False)


def pixel_cross_entropy(logit_BxHxWxY: jax.Array, label_BxHxW: jax.Array, *, divisor: str) -> jax.Array:
    """The cross-entropy over pixels whose label is not IGNORED.

    `divisor` is what the sum is divided by: "all" pixels, as the released heads were trained, or the "valid"
    ones. 0 if no pixel is valid.
    """
    is_valid_BxHxW = label_BxHxW != IGNORED
    index_BxHxWx1 = jnp.where(is_valid_BxHxW, label_BxHxW, 0)[..., None].astype(jnp.int32)
    log_BxHxWxY = jax.nn.log_softmax(logit_BxHxWxY)
    own_BxHxW = jnp.take_along_axis(log_BxHxWxY, index_BxHxWx1, axis=-1)[..., 0]
    number = label_BxHxW.size if divisor == "all" else jnp.maximum(is_valid_BxHxW.sum(), 1)
    return -jnp.where(is_valid_BxHxW, own_BxHxW, 0.0).sum() / number
