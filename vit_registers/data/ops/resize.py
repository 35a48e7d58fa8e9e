"""Resizing 8-bit images, each way as the code does that a recipe comes from. Imports TensorFlow."""

from collections.abc import Callable

import tensorflow as tf

from vit_registers.config import lookup
from vit_registers.data.ops.pil_resize import bicubic, bilinear, pil_resize
from vit_registers.data.ops.strings import Target

Resize = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # image_HxWxC, (height, width) int32 -> image, uint8


def _tensorflow(method: str) -> Resize:
    """As the code of arXiv:2205.01580: tf.image.resize without antialias; the result is truncated."""

    def apply(image_HxWxC: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
        image_HxWxC = tf.image.resize(image_HxWxC, sides, method=method, antialias=False)
        return tf.cast(image_HxWxC, tf.uint8)  # means of levels, so that nothing is to be clipped

    return apply


METHODS: dict[str, Resize] = {
    "area": _tensorflow("area"),
    "bilinear": _tensorflow("bilinear"),
    # torchvision's antialiased resize of 8-bit tensors is PIL's but for one level here and there
    "pil_bilinear": pil_resize(bilinear, 1),
    "pil_bicubic": pil_resize(bicubic, 2),
}


def resize_to(target: Target, method: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """image_HxWxC -> the image resized to the target. Raises ConfigError for an unknown method."""
    resize = lookup(METHODS, method, "method")

    def apply(image_HxWxC: tf.Tensor) -> tf.Tensor:
        image_HxWxC = resize(image_HxWxC, tf.constant([target.height, target.width]))
        return tf.ensure_shape(image_HxWxC, target)

    return apply
