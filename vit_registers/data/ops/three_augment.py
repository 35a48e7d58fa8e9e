"""3-Augment (arXiv:2204.07118) and colour jitter, with PIL's results on 8-bit images. Imports TensorFlow."""

import numpy as np
import tensorflow as tf

from vit_registers.data.ops.color import blend, solarize
from vit_registers.data.ops.pixel_ops import PixelOp
from vit_registers.data.ops.strings import Target, check_color
from vit_registers.errors import ConfigError

_SOLARIZE_FROM = 128
_BLUR_RADIUS = (0.1, 2.0)
_BLUR_PASSES = 3
_ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], np.int32)


def three_augment(target: Target) -> PixelOp:
    """The image after one of three operations, equally likely: gray, solarization, Gaussian blur.

    Solarization starts at level 128; the radius of the blur is uniform in [0.1, 2].
    """
    check_color("three_augment", target)

    def apply(image_HxWx3: tf.Tensor, draw_2: tf.Tensor) -> tf.Tensor:
        low, high = _BLUR_RADIUS
        radius = low + (high - low) * draw_2[1]
        branches = [
            lambda: tf.broadcast_to(pil_gray(image_HxWx3), tf.shape(image_HxWx3)),
            lambda: solarize(image_HxWx3, _SOLARIZE_FROM),
            lambda: gaussian_blur(image_HxWx3, radius),
        ]
        return tf.switch_case(tf.cast(draw_2[0] * 3, tf.int32), branches)

    return PixelOp(2, apply)


def color_jitter(target: Target, brightness: float, contrast: float, saturation: float) -> PixelOp:
    """The image with brightness, contrast and saturation changed in random order.

    This is torchvision's ColorJitter of PIL images. Each factor is uniform in [max(0, 1 - x), 1 + x], where x
    is the argument; the 6 orders are equally likely.
    """
    check_color("color_jitter", target)
    ranges = np.array([brightness, contrast, saturation])
    if not (np.isfinite(ranges).all() and ranges.min() >= 0):
        given = f"color_jitter({brightness}, {contrast}, {saturation})"
        raise ConfigError(f"{given}: must be finite numbers >= 0")
    low_3 = np.maximum(1 - ranges, 0).astype(np.float32)
    width_3 = (1 + ranges).astype(np.float32) - low_3

    def apply(image_HxWx3: tf.Tensor, draw_4: tf.Tensor) -> tf.Tensor:
        order_3 = tf.gather(_ORDERS, tf.cast(draw_4[3] * len(_ORDERS), tf.int32))
        return jitter_pixels(image_HxWx3, tf.constant(low_3) + width_3 * draw_4[:3], order_3)

    return PixelOp(4, apply)


def jitter_pixels(image_HxWx3: tf.Tensor, factor_3: tf.Tensor, order_3: tf.Tensor) -> tf.Tensor:
    """The image with brightness (0), contrast (1) and saturation (2) changed by factor_3 in order_3.

    As in PIL's ImageEnhance, each is an 8-bit blend of the image with black (brightness), with the rounded
    mean of its gray (contrast), or with its gray (saturation).
    """

    def change(step: tf.Tensor, image_HxWx3: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        branches = [
            lambda: blend(0, image_HxWx3, factor_3[0]),
            lambda: blend(mean_level(pil_gray(image_HxWx3)), image_HxWx3, factor_3[1]),
            lambda: blend(pil_gray(image_HxWx3), image_HxWx3, factor_3[2]),
        ]
        return step + 1, tf.switch_case(order_3[step], branches)

    # a loop, as XLA takes seconds to compile the unrolled form
    return tf.while_loop(lambda step, _: step < 3, change, (0, image_HxWx3))[1]


def pil_gray(image_HxWx3: tf.Tensor) -> tf.Tensor:
    """gray_HxWx1 (uint8), PIL's mode L: 0.299 r + 0.587 g + 0.114 b in 16-bit integers, rounded."""
    r, g, b = tf.unstack(tf.cast(image_HxWx3, tf.int32), axis=-1)
    return tf.cast((19595 * r + 38470 * g + 7471 * b + 2**15) // 2**16, tf.uint8)[..., None]


def gaussian_blur(image_HxWxC: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """PIL's ImageFilter.GaussianBlur for a radius (standard deviation, float32) of at most 2.

    Three box blurs along each axis, each rounded to 8 bits, whose fractional size gives the variance
    (P. Gwosdek et al., Theoretical foundations of Gaussian convolution by extended box filtering, 2011).
    Beyond the edge the image repeats its last pixel.
    """
    weight_3 = _box_weights(radius)
    channels = image_HxWxC.shape[-1]
    assert channels is not None
    rows = tf.reshape(image_HxWxC, [tf.shape(image_HxWxC)[0], -1])
    for _ in range(_BLUR_PASSES):
        edges = [rows[:, :channels]] * 2, [rows[:, -channels:]] * 2
        padded = tf.cast(tf.concat([*edges[0], rows, *edges[1]], 1), tf.uint32)
        taps = [padded[:, i * channels : (i - 4) * channels or None] for i in range(5)]
        rows = _weighted(taps, weight_3)
    for _ in range(_BLUR_PASSES):
        padded = tf.cast(tf.concat([rows[:1], rows[:1], rows, rows[-1:], rows[-1:]], 0), tf.uint32)
        rows = _weighted([padded[i : i - 4 or None] for i in range(5)], weight_3)
    return tf.reshape(rows, tf.shape(image_HxWxC))


def _weighted(taps: list[tf.Tensor], weight_3: tf.Tensor) -> tf.Tensor:
    total = weight_3[0] * taps[2] + weight_3[1] * (taps[1] + taps[3]) + weight_3[2] * (taps[0] + taps[4])
    return tf.cast(tf.bitwise.right_shift(total + 2**23, 24), tf.uint8)


def _box_weights(radius: tf.Tensor) -> tf.Tensor:
    """The weights of a pixel, its neighbours and theirs in a box blur, as fractions of 2^24 (uint32).

    Values are rounded to float32 where PIL rounds them. XLA would turn the division by 3 into a product, so
    it is done in float64; XLA would fuse 3 * variance with the subtraction, so it is a sum.
    """
    variance = tf.cast(tf.cast(radius * radius, tf.float64) / _BLUR_PASSES, tf.float32)
    length = tf.cast(tf.sqrt(12.0 * tf.cast(variance, tf.float64) + 1.0), tf.float32)
    whole = tf.floor((length - 1.0) / 2.0)
    fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - (variance + variance + variance))
    box_radius = whole + fraction / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)))
    whole = tf.cast(box_radius, tf.uint32)
    inner = tf.cast(2.0**24 / (box_radius * 2.0 + 1.0), tf.uint32)
    outer = (2**24 - (2 * whole + 1) * inner) // 2
    return tf.stack([inner, tf.where(whole > 0, inner, outer), tf.where(whole > 0, outer, 0)])


def mean_level(gray_HxWx1: tf.Tensor) -> tf.Tensor:
    """The mean of the levels, rounded."""
    size = tf.size(gray_HxWx1)
    return (tf.reduce_sum(tf.cast(gray_HxWx1, tf.int32)) + size // 2) // size
