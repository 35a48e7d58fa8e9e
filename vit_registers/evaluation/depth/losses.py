"""The losses of depth training.

Axis letters: B images, H x W pixels.
"""

import jax
import jax.numpy as jnp

_OFFSET = 1e-3  # metres, added to depths before the logarithm
_MEAN_WEIGHT = 0.15
_STRIDES = (1, 2, 4, 6)  # of the scales of the gradient loss, in pixels
_DISTANCE = 2  # of the pixels whose difference is a gradient


def _log_differences(predicted_BxHxW: jax.Array, depth_BxHxW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(difference of log depths, 0 where there is no depth; the mask of pixels with a depth), BxHxW each."""
    is_valid_BxHxW = depth_BxHxW > 0
    # Both are 1 where there is no depth, so that no gradient of a logarithm is infinite.
    depth_BxHxW = jnp.where(is_valid_BxHxW, depth_BxHxW, 1.0)
    predicted_BxHxW = jnp.where(is_valid_BxHxW, predicted_BxHxW, 1.0)
    return jnp.log(predicted_BxHxW + _OFFSET) - jnp.log(depth_BxHxW + _OFFSET), is_valid_BxHxW


def sig_loss(
    predicted_BxHxW: jax.Array, depth_BxHxW: jax.Array, *, is_warm_up: jax.Array | bool
) -> jax.Array:
    """The scale-invariant loss of log depths over the pixels of the batch whose depth is above 0.

    sqrt(variance + 0.15 mean^2) of the differences of log depths, the variance with n - 1, over the whole
    batch of all devices: a mean of the square roots of parts of the batch is another loss. During the
    warm-up, the first 100 calls of the released code, sqrt(0.15) |mean|. 0 if no pixel has a depth.
    """
    difference_BxHxW, is_valid_BxHxW = _log_differences(predicted_BxHxW, depth_BxHxW)
    number = is_valid_BxHxW.sum()
    mean = difference_BxHxW.sum() / jnp.maximum(number, 1)
    squares = jnp.where(is_valid_BxHxW, jnp.square(difference_BxHxW - mean), 0.0).sum()
    inside = squares / jnp.maximum(number - 1, 1) + _MEAN_WEIGHT * jnp.square(mean)
    # The derivative of the square root at 0 is infinite.
    is_zero = inside == 0
    full = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, inside)))
    return jnp.where(is_warm_up, _MEAN_WEIGHT**0.5 * jnp.abs(mean), full)


def gradient_loss(predicted_BxHxW: jax.Array, depth_BxHxW: jax.Array) -> jax.Array:
    """How much the differences of log depths change from pixel to pixel, at four scales.

    At each scale (all pixels, then every 2nd, 4th and 6th) the sum of |change| over pixels two apart, to the
    right and downward, where both have a depth, divided by the number of pixels that have one.

    The released code computes it along the axes of the batch and of a channel, which gives 0 for its two
    images a device, so the released heads were trained without it.
    """
    total = jnp.zeros(())
    for stride in _STRIDES:
        predicted, depth = (x[:, ::stride, ::stride] for x in (predicted_BxHxW, depth_BxHxW))
        difference, is_valid = _log_differences(predicted, depth)
        changes = [
            (
                difference[:, :-_DISTANCE] - difference[:, _DISTANCE:],
                is_valid[:, :-_DISTANCE] & is_valid[:, _DISTANCE:],
            ),
            (
                difference[:, :, :-_DISTANCE] - difference[:, :, _DISTANCE:],
                is_valid[:, :, :-_DISTANCE] & is_valid[:, :, _DISTANCE:],
            ),
        ]
        amount = sum(jnp.where(both, jnp.abs(change), 0.0).sum() for change, both in changes)
        total += amount / jnp.maximum(is_valid.sum(), 1)
    return total
