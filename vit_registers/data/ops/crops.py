"""Crops: random parts of images, some resized to the target, and the central part. Imports TensorFlow."""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from vit_registers.config import lookup
from vit_registers.data.ops.decode import Example, Op, decode_part
from vit_registers.data.ops.resize import resize_to
from vit_registers.data.ops.strings import Target, check_padding, check_ranges

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

    The part's share of the area is in [area_min, area_max], its width / height in [aspect_min, aspect_max].
    If the image is a JPEG that is not decoded yet, only the part is decoded. `method` (resize.py: METHODS) is
    by default bilinear without antialiasing, as in arXiv:2205.01580.
    """
    areas, aspects = (area_min, area_max), (aspect_min, aspect_max)
    return _crop("inception_crop", inception_box, target, areas, aspects, method)


def inception_box(shape: tf.Tensor, seed: tf.Tensor, areas: Range, aspects: Range) -> tf.Tensor:
    """y, x, height, width (int32) of a random part of an image of `shape`.

    The sampler is TensorFlow's sample_distorted_bounding_box. It draws width / height uniformly from
    `aspects`, then the height in pixels uniformly among those that fit and give an area in `areas` (shares).
    After 100 failed attempts the part is the whole image.
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
    """A random part of the image (`random_resized_box`), resized to the target.

    This is torchvision's RandomResizedCrop, as in DeiT-III (arXiv:2204.07118). If the image is a JPEG that is
    not decoded yet, only the part is decoded. `method` (resize.py: METHODS) is PIL's bicubic by default.
    """
    areas, aspects = (area_min, area_max), (aspect_min, aspect_max)
    return _crop("random_resized_crop", random_resized_box, target, areas, aspects, method)


def random_resized_box(shape: tf.Tensor, seed: tf.Tensor, areas: Range, aspects: Range) -> tf.Tensor:
    """y, x, height, width (int32) of a random part of an image of `shape`, by torchvision's sampler.

    The share of the area is uniform in `areas`, and width / height is log-uniform in `aspects`. Sides are
    rounded, halves to even. The first of 10 attempts that fits is placed uniformly. If none fits, the part
    is the largest central one whose width / height is in `aspects`.
    """
    draws = tf.random.stateless_uniform([2 * _ATTEMPTS + 2], seed, alg="philox")
    return _fitting_box(shape[0], shape[1], draws, areas, aspects)


@tf.function(jit_compile=True, autograph=False)
def _fitting_box(
    height: tf.Tensor, width: tf.Tensor, draws: tf.Tensor, areas: Range, aspects: Range
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
    # tf.gather: XLA takes the index of a slice for a constant, and would compile again for each image
    fits = tf.gather(fits_A, chosen)
    start = tf.where(fits, tf.gather(start_Ax2, chosen), middle_start)
    size = tf.where(fits, tf.gather(size_Ax2, chosen), middle_size)
    return tf.cast(tf.concat([start, size], 0), tf.int32)


def _crop(name: str, sampler: Callable, target: Target, areas: Range, aspects: Range, method: str) -> Op:
    """The operation `name`: parts drawn by `sampler`, resized. Raises ConfigError for impossible ranges."""
    check_ranges(name, areas, aspects)
    resize = resize_to(target, method)

    box = functools.partial(sampler, areas=areas, aspects=aspects)
    return lambda example: {**example, "image": resize(decode_part(example, box, target))}


def random_crop(target: Target, padding: int = 4, mode: str = "zeros") -> Op:
    """A random part of target size of the image padded on each side (arXiv:1512.03385, 4.2).

    `mode` is zeros, or reflect: the image mirrored at its border, which is not repeated, as in DeiT-III's
    "simple random crop" (arXiv:2204.07118, section 3).
    """
    check_padding(padding, mode, target)
    kind = "REFLECT" if mode == "reflect" else "CONSTANT"

    def apply(example: Example) -> Example:
        image_HxWxC = tf.pad(example["image"], [[padding, padding], [padding, padding], [0, 0]], mode=kind)
        size, room = _fit(image_HxWxC, target)
        # a float draw, as the limits of an integer draw must be scalars
        draw_2 = tf.random.stateless_uniform([2], example["seed"])
        start = tf.minimum(tf.cast(draw_2 * tf.cast(room + 1, tf.float32), tf.int32), room)
        return {**example, "image": _part(image_HxWxC, start, size)}

    return apply


def central_crop(target: Target, rounding: str = "floor") -> Op:
    """The central part of target size; smaller sides are kept, and the loader fails with the image's name.

    If the margin is odd, its half above and to the left is rounded down, as in the code of arXiv:2205.01580.
    rounding="half_even" rounds it to the even neighbour, as torchvision's CenterCrop does.
    """
    half = lookup({"floor": tf.floor, "half_even": tf.round}, rounding, "central_crop: rounding")

    def apply(example: Example) -> Example:
        size, room = _fit(example["image"], target)
        return {**example, "image": _part(example["image"], tf.cast(half(room / 2), tf.int32), size)}

    return apply


def _fit(image_HxWxC: tf.Tensor, target: Target) -> tuple[tf.Tensor, tf.Tensor]:
    sides = tf.shape(image_HxWxC)[:2]
    size = tf.minimum(sides, [target.height, target.width])
    return size, sides - size


def _part(image_HxWxC: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.slice(image_HxWxC, tf.concat([start, [0]], 0), tf.concat([size, [-1]], 0))
