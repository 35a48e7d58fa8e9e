"""The loss of depth training, and the errors of predicted depths."""

import jax
import jax.numpy as jnp
import numpy as np

_OFFSET = 1e-3  # metres, added to depths before the logarithm
_MEAN_WEIGHT = 0.15
EIGEN_CROP = (slice(45, 471), slice(41, 601))  # (rows, columns) of 480 x 640 images of NYU Depth v2


def sig_loss(predicted_BxHxW: jax.Array, depth_BxHxW: jax.Array, *, is_warm_up: bool) -> jax.Array:
    """The scale-invariant loss of log depths over the pixels of the batch whose depth is above 0.

    sqrt(variance + 0.15 mean^2) of the differences of log depths, the variance with n - 1. During the warm-up
    of the released code, its first 100 steps, sqrt(0.15) |mean|. 0 if no pixel has a depth.
    """
    is_valid_BxHxW = depth_BxHxW > 0
    safe_BxHxW = jnp.where(is_valid_BxHxW, depth_BxHxW, 1.0)
    own_BxHxW = jnp.where(is_valid_BxHxW, predicted_BxHxW, 1.0)
    difference_BxHxW = jnp.log(own_BxHxW + _OFFSET) - jnp.log(safe_BxHxW + _OFFSET)
    number = is_valid_BxHxW.sum()
    mean = difference_BxHxW.sum() / jnp.maximum(number, 1)
    if is_warm_up:
        return _MEAN_WEIGHT**0.5 * jnp.abs(mean)
    squares = jnp.where(is_valid_BxHxW, jnp.square(difference_BxHxW - mean), 0.0).sum()
    inside = squares / jnp.maximum(number - 1, 1) + _MEAN_WEIGHT * jnp.square(mean)
    # The derivative of the square root at 0 is infinite.
    is_zero = inside == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, inside)))


def depth_errors(
    predicted_HxW: np.ndarray, depth_HxW: np.ndarray, *, low: float, high: float, crop: tuple[slice, slice]
) -> dict[str, float] | None:
    """Errors of one image, over pixels of `crop` with low < depth < high; None if there is no such pixel.

    rmse in metres; abs_rel, the mean of |difference| / depth; log10, the mean difference of base-10
    logarithms; silog, 100 times the standard deviation of the difference of logarithms; a1, a2 and a3, the
    share of pixels whose ratio is below 1.25, 1.25^2 and 1.25^3. The prediction is limited to [low, high].
    The result of a split is the mean over its images.
    """
    depth_HxW, predicted_HxW = depth_HxW[crop].astype(np.float64), predicted_HxW[crop].astype(np.float64)
    is_valid_HxW = (depth_HxW > low) & (depth_HxW < high)
    if not is_valid_HxW.any():
        return None
    depth_N, predicted_N = depth_HxW[is_valid_HxW], np.clip(predicted_HxW[is_valid_HxW], low, high)
    ratio_N = np.maximum(predicted_N / depth_N, depth_N / predicted_N)
    log_N = np.log(predicted_N) - np.log(depth_N)
    return {
        "rmse": float(np.sqrt(np.square(predicted_N - depth_N).mean())),
        "abs_rel": float((np.abs(predicted_N - depth_N) / depth_N).mean()),
        "log10": float(np.abs(log_N).mean() / np.log(10)),
        "silog": float(100 * np.sqrt(max(np.square(log_N).mean() - log_N.mean() ** 2, 0.0))),
        **{f"a{k}": float((ratio_N < 1.25**k).mean()) for k in (1, 2, 3)},
    }
