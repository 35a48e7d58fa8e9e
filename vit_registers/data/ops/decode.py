"""Decoding of whole images, or of a part of them, in tf.data. Imports TensorFlow.

An example is a dict of `bytes` (an encoded image), `image` (uint8, HxWxC, after decoding) and `seed` (int64
of shape [2]), the only source of randomness.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from vit_registers.data import pil_decoding
from vit_registers.data.ops.strings import Target

Example = dict[str, tf.Tensor]
Op = Callable[[Example], Example]
Box = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (height, width, ...), seed -> y, x, height, width (int32)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES = 26  # up to the color type
_PNG_COLOR = 2  # the bit of the color type that is 0 for grey images
# The chunk of animations, before the pixels. PIL also checks the later frames, TensorFlow does not.
_PNG_ANIMATED, _PNG_CHUNKS_BYTES = r"\C*acTL\C*", 4096


def decode(target: Target) -> Op:
    """The operation that decodes an image of any format to the pixels that pil_decoding.py defines."""

    def apply(example: Example) -> Example:
        data = example["bytes"]
        is_plain = tf.cond(
            tf.io.is_jpeg(data),
            lambda: _is_plain_jpeg(tf.io.extract_jpeg_shape(data)),
            lambda: _is_plain_png(data, target),
        )
        image_HxWxC = tf.cond(is_plain, lambda: _by_tensorflow(data, target), lambda: _by_pil(data, target))
        return {**example, "image": image_HxWxC}

    return apply


def decode_part(example: Example, box: Box, target: Target) -> tf.Tensor:
    """The part of the image that `box` draws. If a JPEG is not decoded yet, only that part is decoded."""
    seed = example["seed"]

    def crop_decoded(image_HxWxC: tf.Tensor) -> tf.Tensor:
        y, x, height, width = tf.unstack(box(tf.shape(image_HxWxC), seed), num=4)
        return tf.slice(image_HxWxC, [y, x, 0], [height, width, -1])

    def crop_jpeg(data: tf.Tensor) -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(data)
        return tf.cond(
            _is_plain_jpeg(shape),
            lambda: tf.io.decode_and_crop_jpeg(
                data, box(shape, seed), channels=target.channels, dct_method="INTEGER_ACCURATE"
            ),
            lambda: crop_decoded(_by_pil(data, target)),
        )

    if "image" in example:
        part_HxWxC = crop_decoded(example["image"])
    else:
        data = example["bytes"]
        part_HxWxC = tf.cond(
            tf.io.is_jpeg(data),
            lambda: crop_jpeg(data),
            lambda: crop_decoded(decode(target)(example)["image"]),
        )
    part_HxWxC.set_shape([None, None, target.channels])
    return part_HxWxC


def _is_plain_jpeg(shape: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow decodes a JPEG of shape (height, width, components) as PIL does: all but CMYK."""
    return (shape[2] != 4) & _is_small(shape[:2])


def _is_plain_png(data: tf.Tensor, target: Target) -> tf.Tensor:
    """Whether it is a PNG that TensorFlow decodes as PIL does: not color to grey, whose rounding differs."""

    def is_plain() -> tf.Tensor:
        sides = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
        if target.channels == 3:
            return _is_small(sides)
        color_type = tf.io.decode_raw(tf.strings.substr(data, 25, 1), tf.uint8)[0]
        return _is_small(sides) & (color_type & _PNG_COLOR == 0)

    has_header = (tf.strings.substr(data, 0, len(_PNG)) == _PNG) & (
        tf.strings.length(data) >= _PNG_HEADER_BYTES
    )
    has_header &= ~tf.strings.regex_full_match(tf.strings.substr(data, 0, _PNG_CHUNKS_BYTES), _PNG_ANIMATED)
    return tf.cond(has_header, is_plain, lambda: tf.constant(False))


def _is_small(sides: tf.Tensor) -> tf.Tensor:
    """Whether PIL accepts the size; TensorFlow has other limits."""
    return tf.reduce_prod(tf.cast(sides, tf.int64)) <= pil_decoding.MAX_PIXELS


def _by_tensorflow(data: tf.Tensor, target: Target) -> tf.Tensor:
    # decode_jpeg decodes PNG as well
    return tf.io.decode_jpeg(data, channels=target.channels, dct_method="INTEGER_ACCURATE")


def _by_pil(data: tf.Tensor, target: Target) -> tf.Tensor:
    def decode_or_nothing(data: bytes | np.ndarray) -> np.ndarray:
        # bytes in a graph, a 0-d array in eager mode; TensorFlow would print an error with its traceback
        try:
            return pil_decoding.decode_image(np.asarray(data, object).item(), channels=target.channels)
        except pil_decoding.BrokenImageError:
            return np.zeros((0, 0, target.channels), np.uint8)

    image_HxWxC = tf.numpy_function(decode_or_nothing, [data], tf.uint8)
    image_HxWxC.set_shape([None, None, target.channels])
    with tf.control_dependencies([tf.debugging.assert_positive(tf.size(image_HxWxC), "it is no image")]):
        return tf.identity(image_HxWxC)
