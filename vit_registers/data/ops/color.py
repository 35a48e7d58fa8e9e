"""Pure functions on the colours of 8-bit images, shared by the operations. Imports TensorFlow.

Shapes are static. Images are processed as rows of width * channels levels where that lets XLA use vector
instructions. When compiled, all but `sharpen` give bit for bit the results of TensorFlow's own kernels, which
round a * b + c twice (see `_product`). Before a quotient of integers is truncated, 0.5 is added to its
numerator: this changes no result, and keeps rounding errors from lowering a whole number.
"""

import numpy as np
import tensorflow as tf

from vit_registers.data.ops.pixel_ops import static_shape

_NUM_LEVELS = 256


def blend(first: tf.Tensor | float, second: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """first + factor * (second - first) in float32, clipped to [0, 255] and truncated, as uint8.

    It agrees with PIL's Image.blend and with the code of arXiv:2205.01580. Factor 0 gives the first image, 1
    the second; factors beyond 1 extrapolate. The images may have any type, and broadcast.
    """
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    change = _product(factor, second - first)
    return tf.cast(tf.clip_by_value(first + change, 0.0, 255.0), tf.uint8)


def _product(a: tf.Tensor | float, b: tf.Tensor) -> tf.Tensor:
    """a * b < 1e9. The minimum keeps XLA from contracting a * b + c to one rounding (FMA)."""
    return tf.minimum(a * b, 1e9)


def gray(image_HxWx3: tf.Tensor) -> tf.Tensor:
    """gray_HxWx1, uint8: 0.2989 r + 0.587 g + 0.114 b of colours in [0, 1], times 255.5, truncated.

    This is tf.image.rgb_to_grayscale. PIL's gray (three_augment.py: pil_gray) differs from it by one level
    for a quarter of the 2^24 colours.
    """
    r, g, b = tf.unstack(tf.cast(image_HxWx3, tf.float32) * (1.0 / 255.0), axis=-1)
    gray_HxW = _product(0.2989, r) + _product(0.587, g) + _product(0.114, b)
    return tf.expand_dims(tf.cast(gray_HxW * 255.5, tf.uint8), -1)


def mean_gray(image_HxWx3: tf.Tensor) -> tf.Tensor:
    """The mean of 0.2989 r + 0.587 g + 0.114 b truncated to integers, as in torchvision's adjust_contrast."""
    height, width, _ = static_shape(image_HxWx3)
    r, g, b = tf.unstack(tf.cast(image_HxWx3, tf.float32), axis=-1)
    gray_HxW = tf.cast((2989.0 * r + 5870.0 * g + 1140.0 * b + 0.5) / 10000.0, tf.int32)
    return tf.cast(tf.reduce_sum(gray_HxW), tf.float32) / float(height * width)


def autocontrast(image_HxWxC: tf.Tensor) -> tf.Tensor:
    """The image with the range [low, high] of each channel stretched to [0, 255].

    The result is level * scale - low * scale with scale = 255 / (high - low), in float32, truncated, as in
    the code of arXiv:2205.01580; PIL's ImageOps.autocontrast computes in float64. Where the exact value is a
    whole number, such as 255 for `high`, both can be lower by one level. A channel of one level is unchanged.
    """
    height, width, channels = static_shape(image_HxWxC)
    rows = tf.reshape(image_HxWxC, [height, width * channels])
    low_C = tf.reduce_min(tf.reshape(tf.reduce_min(rows, 0), [width, channels]), 0)
    high_C = tf.reduce_max(tf.reshape(tf.reduce_max(rows, 0), [width, channels]), 0)
    low_C, span_C = tf.cast(low_C, tf.float32), tf.cast(high_C - low_C, tf.float32)
    scale_C = 255.0 / tf.maximum(span_C, 1.0)
    scale, offset, span = (tf.tile(a, [width]) for a in (scale_C, _product(low_C, scale_C), span_C))
    stretched = tf.clip_by_value(_product(tf.cast(rows, tf.float32), scale) - offset, 0.0, 255.0)
    return tf.reshape(tf.where(span > 0, tf.cast(stretched, tf.uint8), rows), image_HxWxC.shape)


def equalize(image_HxWxC: tf.Tensor) -> tf.Tensor:
    """The image with the histogram of each channel equalized, as by PIL's ImageOps.equalize.

    Let `step` be the number of pixels below the highest level, divided by 255. The new level is the number of
    pixels at lower levels, divided by step and rounded; if step is 0, the channel is unchanged.
    """
    channels = [tf.cast(channel, tf.int32) for channel in tf.unstack(image_HxWxC, axis=-1)]
    table_CxL = _equalizing(tf.stack([_histogram(channel) for channel in channels]))
    equalized = [tf.gather(table_CxL[c], channel) for c, channel in enumerate(channels)]
    return tf.stack(equalized, axis=-1)


def _histogram(level: tf.Tensor) -> tf.Tensor:
    """count_L, int32. (With tf.math.bincount, XLA would compile again for every image.)"""
    level_Nx1 = tf.reshape(level, [-1, 1])
    return tf.scatter_nd(level_Nx1, tf.ones(level_Nx1.shape[:1], tf.int32), [_NUM_LEVELS])


def _equalizing(count_CxL: tf.Tensor) -> tf.Tensor:
    level_1xL = tf.range(_NUM_LEVELS)[None]
    highest_Cx1 = tf.reduce_max(tf.where(count_CxL > 0, level_1xL, 0), 1, keepdims=True)
    count_below_Cx1 = tf.reduce_sum(tf.where(level_1xL < highest_Cx1, count_CxL, 0), 1, keepdims=True)
    step_Cx1 = count_below_Cx1 // 255

    def flat() -> tf.Tensor:
        below_CxL = tf.cumsum(count_CxL, axis=1, exclusive=True)
        table_CxL = tf.minimum((below_CxL + step_Cx1 // 2) // tf.maximum(step_Cx1, 1), 255)
        return tf.where(step_Cx1 > 0, table_CxL, level_1xL)

    # without tf.cond, XLA would also compute the table again for every pixel
    table_CxL = tf.cond(tf.reduce_any(step_Cx1 > 0), flat, lambda: level_1xL + tf.zeros_like(count_CxL))
    return tf.cast(table_CxL, tf.uint8)


def posterize(image_HxWxC: tf.Tensor, num_bits: int) -> tf.Tensor:
    """The image with only the `num_bits` highest bits of each level."""
    return tf.bitwise.bitwise_and(image_HxWxC, np.uint8(256 - 2 ** (8 - num_bits)))


def solarize(image_HxWxC: tf.Tensor, threshold: int) -> tf.Tensor:
    """The image with the levels from `threshold` (0 to 255) on inverted."""
    return tf.where(image_HxWxC < np.uint8(threshold), image_HxWxC, 255 - image_HxWxC)


def solarize_add(image_HxWxC: tf.Tensor, addition: int) -> tf.Tensor:
    """The image with `addition` added to the levels below 128, up to 255."""
    added_HxWxC = tf.minimum(tf.cast(image_HxWxC, tf.int32) + addition, 255)
    return tf.where(image_HxWxC < 128, tf.cast(added_HxWxC, tf.uint8), image_HxWxC)


def sharpen(image_HxWxC: tf.Tensor, factor: float) -> tf.Tensor:
    """blend(smooth, image, factor), sharper for factors beyond 1. The pixels at the border are unchanged.

    `smooth` is the mean of a pixel with weight 5 and its 8 neighbours with weight 1, truncated, as in the
    code of arXiv:2205.01580; PIL rounds it. That code sums in float32 and loses a level for some whole
    numbers, so that one in 400 levels of a photograph differs from it.
    """
    height, width, channels = static_shape(image_HxWxC)
    rows = tf.reshape(image_HxWxC, [height, width * channels])
    level = tf.cast(rows, tf.int32)
    inner = level[1:-1, channels:-channels]
    sums = level[:-2] + level[1:-1] + level[2:]
    sums = sums[:, : -2 * channels] + sums[:, channels:-channels] + sums[:, 2 * channels :] + 4 * inner
    smooth = tf.floor((tf.cast(sums, tf.float32) + 0.5) / 13.0)
    middle = [rows[1:-1, :channels], blend(smooth, inner, factor), rows[1:-1, -channels:]]
    sharp = tf.concat([rows[:1], tf.concat(middle, 1), rows[-1:]], 0)
    return tf.reshape(sharp, image_HxWxC.shape)
