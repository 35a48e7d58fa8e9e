"""Resizing of 8-bit images, with the methods of the recipes' original codes. Imports TensorFlow."""

from collections.abc import Callable

import tensorflow as tf

from vit_registers.config import lookup
from vit_registers.data.ops.decode import Example, Op
from vit_registers.data.ops.pil_resize import bicubic_kernel, bilinear_kernel, pil_resize
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

Resize = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # image_HxWxC, (height, width) int32 -> image, uint8


def _tensorflow(method: str) -> Resize:
    """tf.image.resize without antialiasing, truncated to integers, as in the code of arXiv:2205.01580."""

    def apply(image_HxWxC: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
        image_HxWxC = tf.image.resize(image_HxWxC, sides, method=method, antialias=False)
        return tf.cast(image_HxWxC, tf.uint8)  # weighted means of levels: no clipping needed

    return apply


METHODS: dict[str, Resize] = {
    "area": _tensorflow("area"),
    "bilinear": _tensorflow("bilinear"),
    # torchvision's antialiased resize of 8-bit tensors equals PIL's to within one level
    "pil_bilinear": pil_resize(bilinear_kernel, 1),
    "pil_bicubic": pil_resize(bicubic_kernel, 2),
}


def resize_to(target: Target, method: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function image_HxWxC -> image resized to the target. Raises ConfigError for an unknown method."""
    resize_image = lookup(METHODS, method, "method")

    def apply(image_HxWxC: tf.Tensor) -> tf.Tensor:
        image_HxWxC = resize_image(image_HxWxC, tf.constant([target.height, target.width]))
        return tf.ensure_shape(image_HxWxC, target)

    return apply


def resize_small(target: Target, size: int, method: str = "area") -> Op:
    """The image with its shorter side resized to `size` pixels, the other in proportion.

    The longer side is rounded, as in the code of arXiv:2205.01580. With PIL's methods it is truncated, as by
    torchvision's Resize; an image whose shorter side is `size` already is then unchanged.
    """
    if size < 1:
        raise ConfigError(f"resize_small: size={size}: must be >= 1")
    resize_image = lookup(METHODS, method, "resize_small: method")

    def apply(example: Example) -> Example:
        sides = tf.shape(example["image"])[:2]
        if method.startswith("pil_"):
            sides = sides * size // tf.reduce_min(sides)
        else:
            sides = tf.cast(sides, tf.float32)
            sides = tf.cast(tf.round(sides * (size / tf.reduce_min(sides))), tf.int32)
        return {**example, "image": resize_image(example["image"], sides)}

    return apply


def resize(target: Target, method: str = "bilinear") -> Op:
    """The image resized to the target; the aspect ratio is not kept."""
    resize_image = resize_to(target, method)
    return lambda example: {**example, "image": resize_image(example["image"])}
