"""Random parts of images, resized to the target. Imports TensorFlow."""

import math
from collections.abc import Callable

import tensorflow as tf

from vit_registers.data.ops.decode import Example, Op, decode_part
from vit_registers.data.ops.resize import resize_to
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

Range = tuple[float, float]  # least, most
_ATTEMPTS = 10  # A in names


def inception_crop(
    target: Target,
    area_min: float = 0.05,
    area_max: float = 1.0,
    aspect_min: float = 0.75,
    aspect_max: float = 1.33,
    method: str = "bilinear",
) -> Op:
    """A random part of the image (`inception_box`), resized to the target (arXiv:1409.4842, section 6).

    The part has a share of the area in [area_min, area_max] and width / height in [aspect_min, aspect_max].
    Of a JPEG that is not decoded yet only the part is decoded. Resizing (resizing.py: METHODS) is bilinear
    without antialias by default, as in arXiv:2205.01580.
    """
    return _crop(
        "inception_crop", inception_box, target, (area_min, area_max), (aspect_min, aspect_max), method
    )


def inception_box(shape: tf.Tensor, seed: tf.Tensor, areas: Range, aspects: Range) -> tf.Tensor:
    """y, x, height, width (int32) of a random part of an image of `shape`, by TensorFlow's
    sample_distorted_bounding_box.

    Width / height is uniform in `aspects`, then the height, in pixels, among those that give an area in
    `areas` (as shares) and fit. Until 100 attempts have failed another is made; then it is the whole image.
    """
    start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=aspects,
        area_range=areas,
        max_attempts=100,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([start[:2], size[:2]], 0)


def random_resized_crop(
    target: Target,
    area_min: float = 0.08,
    area_max: float = 1.0,
    aspect_min: float = 0.75,
    aspect_max: float = 1.3333333333333333,
    method: str = "pil_bicubic",
) -> Op:
    """A random part of the image (`random_resized_box`), resized to the target: torchvision's
    RandomResizedCrop, as in DeiT-III (arXiv:2204.07118).

    Of a JPEG that is not decoded yet only the part is decoded. Resizing (resizing.py: METHODS) is PIL's
    bicubic by default.
    """
    return _crop(
        "random_resized_crop",
        random_resized_box,
        target,
        (area_min, area_max),
        (aspect_min, aspect_max),
        method,
    )


def random_resized_box(shape: tf.Tensor, seed: tf.Tensor, areas: Range, aspects: Range) -> tf.Tensor:
    """y, x, height, width (int32) of a random part of an image of `shape`, by torchvision's sampler.

    The share of the area is uniform in `areas`, width / height log-uniform in `aspects`; sides are rounded
    (halves to even), and the first of 10 attempts that fits is placed uniformly. If none fits, it is the
    largest part in the middle whose aspect is in `aspects`.
    """
    draws = tf.random.stateless_uniform([2 * _ATTEMPTS + 2], seed, alg="philox")
    return _fitting_box(shape[0], shape[1], draws, areas, aspects)


@tf.function(jit_compile=True, autograph=False)
def _fitting_box(
    height: tf.Tensor,
    width: tf.Tensor,
    draws: tf.Tensor,
    areas: tuple[float, float],
    aspects: tuple[float, float],
) -> tf.Tensor:
    height, width, draws = (tf.cast(number, tf.float64) for number in (height, width, draws))
    area_A = height * width * (areas[0] + (areas[1] - areas[0]) * draws[:_ATTEMPTS])
    low, high = math.log(aspects[0]), math.log(aspects[1])
    aspect_A = tf.exp(low + (high - low) * draws[_ATTEMPTS:-2])
    size_Ax2 = tf.round(tf.sqrt(tf.stack([area_A / aspect_A, area_A * aspect_A], 1)))
    room_Ax2 = tf.stack([height, width]) - size_Ax2
    fits_A = tf.reduce_all((size_Ax2 > 0) & (room_Ax2 >= 0), 1)
    start_Ax2 = tf.floor(draws[-2:] * (room_Ax2 + 1.0))

    chosen = tf.argmax(tf.cast(fits_A, tf.int32))  # the first
    middle_height = tf.minimum(height, tf.round(width / aspects[0]))
    middle_width = tf.minimum(width, tf.round(height * aspects[1]))
    middle_size = tf.stack([middle_height, middle_width])
    middle_start = (tf.stack([height, width]) - middle_size) // 2
    # tf.gather: XLA would take the index of a slice for a constant, and compile anew for each image
    fits = tf.gather(fits_A, chosen)
    start = tf.where(fits, tf.gather(start_Ax2, chosen), middle_start)
    size = tf.where(fits, tf.gather(size_Ax2, chosen), middle_size)
    return tf.cast(tf.concat([start, size], 0), tf.int32)


def _crop(name: str, sampler: Callable, target: Target, areas: Range, aspects: Range, method: str) -> Op:
    """The operation `name`: parts that `sampler` draws, resized. Raises ConfigError where none could fit."""
    if not 0 < areas[0] <= areas[1] <= 1:
        raise ConfigError(f"{name}: area_min={areas[0]}, area_max={areas[1]}: want 0 < min <= max <= 1")
    if not 0 < aspects[0] <= aspects[1]:
        raise ConfigError(f"{name}: aspect_min={aspects[0]}, aspect_max={aspects[1]}: want 0 < min <= max")
    resize = resize_to(target, method)

    def box(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return sampler(shape, seed, areas, aspects)

    def apply(example: Example) -> Example:
        return {**example, "image": resize(decode_part(example, box, target))}

    return apply
