"""The colour operations of DINO's and DINOv2's crops, with PIL's results on 8-bit images. Imports TensorFlow.

They are the operations of on_device.py with the same names and arguments, with other draws.
"""

import itertools

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from vit_registers.data.ops.color import blend, solarize
from vit_registers.data.ops.pixel_ops import PixelOp, static_shape
from vit_registers.data.ops.strings import Target, check_jitter, check_probability, check_sigmas
from vit_registers.data.ops.three_augment import mean_level, pil_gray

_ORDERS = np.array([*itertools.permutations(range(4))], np.int32)
_TAPS = np.arange(-4, 5)  # of the blur: 9 x 9


def jitter(
    target: Target, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1.0
) -> PixelOp:
    """The image with brightness, contrast, saturation and hue changed in random order, with probability p.

    This is torchvision's ColorJitter of PIL images: factors are uniform in [max(0, 1 - x), 1 + x], the shift
    of the hue in [-x, x], and the 24 orders are equally likely. Saturation and hue of gray images stay.
    """
    strength_4 = np.array([brightness, contrast, saturation, hue], np.float32)
    check_jitter((brightness, contrast, saturation, hue))
    check_probability("jitter", p)
    low_4 = np.concatenate([np.maximum(1 - strength_4[:3], 0), -strength_4[3:]]).astype(np.float32)
    width_4 = np.concatenate([1 + strength_4[:3], strength_4[3:]]).astype(np.float32) - low_4

    def apply(image_HxWxC: tf.Tensor, draw_6: tf.Tensor) -> tf.Tensor:
        factor_4 = tf.constant(low_4) + width_4 * draw_6[:4]
        order_4 = tf.gather(_ORDERS, tf.cast(draw_6[4] * len(_ORDERS), tf.int32))
        changed = lambda: _jittered(image_HxWxC, factor_4, order_4)  # noqa: E731
        return tf.cond(draw_6[5] < p, changed, lambda: image_HxWxC)

    return PixelOp(6, apply)


def _jittered(image_HxWxC: tf.Tensor, factor_4: tf.Tensor, order_4: tf.Tensor) -> tf.Tensor:
    is_gray = image_HxWxC.shape[-1] != 3

    def luma(image: tf.Tensor) -> tf.Tensor:
        return image if is_gray else pil_gray(image)

    def change(step: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        branches = [
            lambda: blend(0, image, factor_4[0]),
            lambda: blend(mean_level(luma(image)), image, factor_4[1]),
            lambda: image if is_gray else blend(pil_gray(image), image, factor_4[2]),
            lambda: image if is_gray else shift_hue(image, factor_4[3]),
        ]
        return step + 1, tf.switch_case(order_4[step], branches)

    # a loop, as XLA takes seconds to compile the unrolled form
    return tf.while_loop(lambda step, _: step < 4, change, (0, image_HxWxC))[1]


def shift_hue(image_HxWx3: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """The hue of PIL's 8-bit HSV image shifted by trunc(shift * 255) levels.

    PIL computes in float64, so that for less than a hundredth of the colours the hue differs by a level.
    """
    r, g, b = tf.unstack(tf.cast(image_HxWx3, tf.float32), axis=-1)
    high, low = tf.maximum(tf.maximum(r, g), b), tf.minimum(tf.minimum(r, g), b)
    is_flat = tf.equal(high, low)
    span = tf.where(is_flat, 1.0, high - low)
    rc, gc, bc = (high - r) / span, (high - g) / span, (high - b) / span
    h = tf.where(tf.equal(r, high), bc - gc, tf.where(tf.equal(g, high), 2.0 + rc - bc, 4.0 + gc - rc))
    h = h / 6.0 + 1.0
    h = tf.cast((h - tf.floor(h)) * 255.0, tf.int32)
    s = tf.where(is_flat, 0, tf.cast(span / tf.where(is_flat, 1.0, high) * 255.0, tf.int32))
    h = tf.where(is_flat, 0, h) + tf.cast(shift * 255.0, tf.int32)
    return _from_hsv(tf.math.floormod(h, 256), s, high)


def _from_hsv(h: tf.Tensor, s: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The colours of levels h and s (int32), and of value (float32), rounded as PIL does."""
    sector = tf.cast(h, tf.float32) * (6.0 / 255.0)
    place = tf.floor(sector)
    part, share = sector - place, tf.cast(s, tf.float32) / 255.0
    p, q, t = (
        tf.clip_by_value(tf.floor(value * (1.0 - share * x) + 0.5), 0.0, 255.0)
        for x in (tf.ones_like(part), part, 1.0 - part)
    )
    index = tf.cast(place, tf.int32) % 6
    choices = [(value, t, p), (q, value, p), (p, value, t), (p, q, value), (t, p, value), (value, p, q)]
    channels = []
    for channel in range(3):
        chosen = choices[5][channel]
        for i in range(5):
            chosen = tf.where(index == i, choices[i][channel], chosen)
        channels.append(tf.where(s == 0, value, chosen))
    return tf.cast(tf.stack(channels, axis=-1), tf.uint8)


def grayscale(target: Target, p: float = 1.0) -> PixelOp:
    """Equal channels of PIL's gray with probability p; gray images stay."""
    check_probability("grayscale", p)

    def apply(image_HxWxC: tf.Tensor, draw_1: tf.Tensor) -> tf.Tensor:
        if image_HxWxC.shape[-1] != 3:
            return image_HxWxC
        return tf.where(draw_1[0] < p, pil_gray(image_HxWxC), image_HxWxC)

    return PixelOp(1, apply)


def blur(target: Target, p: float = 1.0, sigma_min: float = 0.1, sigma_max: float = 2.0) -> PixelOp:
    """A Gaussian blur of 9 x 9 taps, reflected at the edges, with probability p; its sigma is uniform.

    As torchvision's GaussianBlur of PIL images: computed in float32, then rounded.
    """
    check_probability("blur", p)
    check_sigmas(sigma_min, sigma_max, target)

    def apply(image_HxWxC: tf.Tensor, draw_2: tf.Tensor) -> tf.Tensor:
        sigma = sigma_min + (sigma_max - sigma_min) * draw_2[0]
        return tf.cond(draw_2[1] < p, lambda: blurred(image_HxWxC, sigma), lambda: image_HxWxC)

    return PixelOp(2, apply)


def blurred(image_HxWxC: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """The image convolved with a Gaussian of 9 x 9 taps, reflected at the edges, rounded to 8 bits."""
    weight_9 = tf.exp(-0.5 * tf.square(_TAPS.astype(np.float32) / sigma))
    weight_9 = weight_9 / tf.reduce_sum(weight_9)
    height, width, channels = static_shape(image_HxWxC)
    # Rows of width * channels levels, for vector instructions. Each pass adds its edges. Barriers keep XLA
    # from fusing both passes into one of 81 taps, and edges into taps, which takes 3 times as long.
    x = _with_edges(tf.reshape(tf.cast(image_HxWxC, tf.float32), [height, width * channels]), axis=0)
    x = _barrier(tf.add_n([weight_9[i] * x[i : i + height] for i in range(len(_TAPS))]))
    x = _with_edges(tf.reshape(x, [height, width, channels]), axis=1)
    x, last = tf.reshape(x, [height, -1]), width * channels
    starts = range(0, len(_TAPS) * channels, channels)
    x = tf.add_n([weight_9[i] * x[:, start : start + last] for i, start in enumerate(starts)])
    levels = tf.clip_by_value(tf.round(x), 0.0, 255.0)
    return tf.cast(tf.reshape(levels, [height, width, channels]), tf.uint8)


def _with_edges(x: tf.Tensor, *, axis: int) -> tf.Tensor:
    """x with the margin that the blur requires at both ends of an axis: x reflected, without its edge."""
    margin = len(_TAPS) // 2
    first, last = ((*[slice(None)] * axis, part) for part in (slice(1, margin + 1), slice(-margin - 1, -1)))
    return _barrier(tf.concat([tf.reverse(x[first], [axis]), x, tf.reverse(x[last], [axis])], axis))


def _barrier(x: tf.Tensor) -> tf.Tensor:
    """x, which XLA computes and stores before it is used."""
    return xla.optimization_barrier(x)[0]  # pyright: ignore[reportIndexIssue]


def random_solarize(target: Target, p: float = 1.0, threshold: int = 128) -> PixelOp:
    """The levels from `threshold` on inverted, with probability p."""
    check_probability("solarize", p)

    def apply(image_HxWxC: tf.Tensor, draw_1: tf.Tensor) -> tf.Tensor:
        return tf.where(draw_1[0] < p, solarize(image_HxWxC, threshold), image_HxWxC)

    return PixelOp(1, apply)
