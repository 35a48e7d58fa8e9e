"""Encoded images to pixels, whole or only a part. Imports TensorFlow.

An example is a dict with `bytes` (an encoded image), `image` (uint8, HxWxC, once it is decoded) and
`seed` (int64 of shape [2]), the only source of randomness.
"""

from collections.abc import Callable

import tensorflow as tf

from vit_registers.data.op_strings import Target

Example = dict[str, tf.Tensor]
Op = Callable[[Example], Example]
Box = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (height, width, ...), seed -> y, x, height, width (int32)


def decode(target: Target) -> Op:
    """Decodes JPEG or PNG to the channels of the target; colour to grey and back as libjpeg and libpng do."""

    def apply(example: Example) -> Example:
        image_HxWxC = tf.io.decode_jpeg(  # despite its name it decodes PNG too
            example["bytes"], channels=target.channels, dct_method="INTEGER_ACCURATE"
        )
        return {**example, "image": image_HxWxC}

    return apply


def decode_part(example: Example, box: Box, target: Target) -> tf.Tensor:
    """The part of the image that `box` draws; of a JPEG that is not decoded yet only that part is decoded."""
    seed = example["seed"]

    def crop_decoded(image_HxWxC: tf.Tensor) -> tf.Tensor:
        y, x, height, width = tf.unstack(box(tf.shape(image_HxWxC), seed), num=4)
        return tf.slice(image_HxWxC, [y, x, 0], [height, width, -1])

    def crop_jpeg(data: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_and_crop_jpeg(
            data,
            box(tf.io.extract_jpeg_shape(data), seed),
            channels=target.channels,
            dct_method="INTEGER_ACCURATE",
        )

    if "image" in example:
        part_HxWxC = crop_decoded(example["image"])
    else:
        part_HxWxC = tf.cond(
            tf.io.is_jpeg(example["bytes"]),
            lambda: crop_jpeg(example["bytes"]),
            lambda: crop_decoded(decode(target)(example)["image"]),
        )
    part_HxWxC.set_shape([None, None, target.channels])
    return part_HxWxC
