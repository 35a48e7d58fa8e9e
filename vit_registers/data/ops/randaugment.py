"""RandAugment (arXiv:1909.13719) as in the code of arXiv:2205.01580. Imports TensorFlow."""

from collections.abc import Callable

import tensorflow as tf

from vit_registers.config import lookup
from vit_registers.data.ops import color, warps
from vit_registers.data.ops.pixel_ops import PixelOp, static_shape
from vit_registers.data.ops.strings import Target, check_color
from vit_registers.data.ops.warps import Affine
from vit_registers.errors import ConfigError

# (image_HxWx3, level, draw_2) -> image_HxWx3, compiled by XLA. level is the magnitude over 10; draw_2 are
# numbers uniform in [0, 1), for a sign (sign_index) or a place (cutout_center).
Operation = Callable[[tf.Tensor, float, tf.Tensor], tf.Tensor]

MAX_MAGNITUDE = 20  # at which posterize keeps all 8 bits
_DRAWS = 3  # per operation: which, and draw_2


def randaugment(target: Target, num_ops: int = 2, magnitude: int = 10, contrast: str = "released") -> PixelOp:
    """The image after `num_ops` of the 16 OPERATIONS, drawn uniformly with replacement.

    `contrast` is a key of CONTRASTS. The published numbers come from code with some deviations from the
    paper, which are kept: solarize at magnitude 10 inverts every level, posterize keeps at least 1 bit,
    sharpness only sharpens, and contrast depends on the size of the image alone. color.py names the roundings
    that differ from that code.
    """
    check_color("randaugment", target)
    if num_ops < 1:
        raise ConfigError(f"randaugment: num_ops={num_ops}: must be >= 1")
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ConfigError(f"randaugment: magnitude={magnitude}: must be 0 to {MAX_MAGNITUDE}")
    chosen_contrast = lookup(CONTRASTS, contrast, "randaugment: contrast")
    operations = [*(OPERATIONS | {"contrast": chosen_contrast}).values()]
    level = magnitude / 10

    def apply(image_HxWx3: tf.Tensor, draw_N: tf.Tensor) -> tf.Tensor:
        for draw_3 in tf.unstack(tf.reshape(draw_N, [num_ops, _DRAWS])):
            branches = [_branch(operation, image_HxWx3, level, draw_3[1:]) for operation in operations]
            image_HxWx3 = tf.switch_case(operation_index(draw_3), branches)
        return image_HxWx3

    return PixelOp(num_ops * _DRAWS, apply)


def operation_index(draw_3: tf.Tensor) -> tf.Tensor:
    """The index in OPERATIONS that the draws choose, int32."""
    return tf.cast(tf.gather(draw_3, 0, axis=-1) * len(OPERATIONS), tf.int32)


def sign_index(draw_2: tf.Tensor) -> tf.Tensor:
    """0 (plus) or 1 (minus), equally likely, int32."""
    return tf.cast(tf.gather(draw_2, 0, axis=-1) < 0.5, tf.int32)


def cutout_center(draw_2: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """A pixel (y, x), uniformly distributed, int32."""
    return tf.cast(draw_2 * tf.constant([height, width], tf.float32), tf.int32)


def contrast_released(image_HxWx3: tf.Tensor, level: float, draw_2: tf.Tensor) -> tf.Tensor:
    """The contrast changed about a constant gray, min(height * width // 256, 255): 196 at 224 x 224 pixels.

    This reproduces an error in the code behind the published numbers, which was meant to use the mean of the
    image (github.com/google-research/big_vision/issues/109).
    """
    height, width, _ = static_shape(image_HxWx3)
    return _enhanced(image_HxWx3, min(height * width // 256, 255), level)


def contrast_mean(image_HxWx3: tf.Tensor, level: float, draw_2: tf.Tensor) -> tf.Tensor:
    """The contrast changed about the mean of the image's gray, as by torchvision."""
    return _enhanced(image_HxWx3, color.mean_gray(image_HxWx3), level)


def _branch(
    operation: Operation, image_HxWx3: tf.Tensor, level: float, draw_2: tf.Tensor
) -> Callable[[], tf.Tensor]:
    return lambda: tf.ensure_shape(operation(image_HxWx3, level, draw_2), image_HxWx3.shape)


def _enhanced(image_HxWx3: tf.Tensor, dull: tf.Tensor | int, level: float) -> tf.Tensor:
    return color.blend(dull, image_HxWx3, level * 1.8 + 0.1)


def _cutout(image_HxWx3: tf.Tensor, level: float, draw_2: tf.Tensor) -> tf.Tensor:
    height, width, _ = static_shape(image_HxWx3)
    return warps.cutout(image_HxWx3, cutout_center(draw_2, height, width), int(level * 40))


def _rotate(image_HxWx3: tf.Tensor, level: float, draw_2: tf.Tensor) -> tf.Tensor:
    height, width, _ = static_shape(image_HxWx3)
    return _warped(image_HxWx3, level * 30, draw_2, lambda degrees: warps.rotation(degrees, height, width))


def _warped(
    image_HxWx3: tf.Tensor, amount: float, draw_2: tf.Tensor, matrix: Callable[[float], Affine]
) -> tf.Tensor:
    height, width, _ = static_shape(image_HxWx3)
    sources = [warps.affine_source(matrix(signed), height, width) for signed in (amount, -amount)]
    return warps.warp(image_HxWx3, sources, sign_index(draw_2))


CONTRASTS: dict[str, Operation] = {"released": contrast_released, "mean": contrast_mean}
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, level, draw_2: color.autocontrast(image),
    "equalize": lambda image, level, draw_2: color.equalize(image),
    "invert": lambda image, level, draw_2: 255 - image,
    "rotate": _rotate,
    # TensorFlow shifts 8-bit numbers by 7 bits at most, so 1 bit is left
    "posterize": lambda image, level, draw_2: color.posterize(image, max(int(level * 4), 1)),
    # as an 8-bit number, 256 is 0
    "solarize": lambda image, level, draw_2: color.solarize(image, int(level * 256) % 256),
    "color": lambda image, level, draw_2: _enhanced(image, color.gray(image), level),
    "contrast": contrast_released,
    "brightness": lambda image, level, draw_2: _enhanced(image, 0, level),
    "sharpness": lambda image, level, draw_2: color.sharpen(image, level * 1.8 + 0.1),
    "shear_x": lambda image, level, draw_2: _warped(image, level * 0.3, draw_2, lambda s: (1, s, 0, 0, 1, 0)),
    "shear_y": lambda image, level, draw_2: _warped(image, level * 0.3, draw_2, lambda s: (1, 0, 0, s, 1, 0)),
    "translate_x": lambda image, level, draw_2: _warped(
        image, level * 100, draw_2, lambda pixels: (1, 0, pixels, 0, 1, 0)
    ),
    "translate_y": lambda image, level, draw_2: _warped(
        image, level * 100, draw_2, lambda pixels: (1, 0, 0, 0, 1, pixels)
    ),
    "cutout": _cutout,
    "solarize_add": lambda image, level, draw_2: color.solarize_add(image, int(level * 110)),
}
