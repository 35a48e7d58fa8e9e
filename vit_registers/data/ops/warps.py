"""Geometric operations on 8-bit images, and cutout. Imports TensorFlow."""

import math

import numpy as np
import tensorflow as tf

from vit_registers.data.ops.pixel_ops import static_shape

FILL = 128  # the level of pixels from outside of the image
Affine = tuple[float, float, float, float, float, float]


def warp(image_HxWxC: tf.Tensor, sources: list[np.ndarray], index: tf.Tensor) -> tf.Tensor:
    """The image with each pixel taken from the place in sources[index] (source_HxW, see affine_source).

    Constant tables are exact under XLA too, and several times faster than coordinates computed per image.
    """
    height, width, channels = static_shape(image_HxWxC)
    pixels = tf.reshape(image_HxWxC, [height * width, channels])
    pixels = tf.concat([pixels, tf.fill([1, channels], tf.constant(FILL, tf.uint8))], 0)
    # tf.gather: XLA takes the index of a slice for a constant, and would compile again for each
    return tf.gather(pixels, tf.gather(tf.constant(np.stack(sources)), index))


def affine_source(matrix: Affine, height: int, width: int) -> np.ndarray:
    """source_HxW, int32: the source y' * width + x' of the pixel at (y, x), or height * width for FILL.

    For the matrix (a, ..., f), (x', y') = (a x + b y + c, d x + e y + f) in float32, rounded to the nearest,
    halves away from 0: TensorFlow's ImageProjectiveTransformV3, as in tfa.image.transform.
    """
    a, b, c, d, e, f = np.array(matrix, np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    source_x, source_y = _rounded(a * x + b * y + c), _rounded(d * x + e * y + f)
    is_inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    return np.where(is_inside, source_y * width + source_x, height * width).astype(np.int32)


def rotation(degrees: float, height: int, width: int) -> Affine:
    """The matrix of tfa.image.rotate: about the centre, counterclockwise for positive degrees."""
    radians = np.float32(degrees) * np.float32(math.pi / 180)
    cos, sin = np.cos(radians), np.sin(radians)
    last_y, last_x = np.float32(height - 1), np.float32(width - 1)
    x_offset = (last_x - (cos * last_x - sin * last_y)) / np.float32(2)
    y_offset = (last_y - (sin * last_x + cos * last_y)) / np.float32(2)
    return cos, -sin, x_offset, sin, cos, y_offset


def cutout(image_HxWxC: tf.Tensor, center_2: tf.Tensor, pad: int) -> tf.Tensor:
    """The image with a square about the pixel center_2 = (y, x) filled (arXiv:1708.04552).

    The square covers the rows from y - pad to y + pad, exclusive, and likewise the columns, within the image.
    """
    height, width, _ = static_shape(image_HxWxC)
    y_Hx1, x_1xW = tf.range(height)[:, None] - center_2[0], tf.range(width)[None] - center_2[1]
    is_covered_HxW = (y_Hx1 >= -pad) & (y_Hx1 < pad) & (x_1xW >= -pad) & (x_1xW < pad)
    return tf.where(is_covered_HxW[..., None], tf.constant(FILL, tf.uint8), image_HxWxC)


def _rounded(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)  # in float32 the sum could round up
    return np.trunc(values + np.copysign(0.5, values)).astype(np.int64)
