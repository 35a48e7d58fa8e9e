"""Image operations of the tf.data loader: plain functions example -> example. Imports TensorFlow.

An example is a dict with `bytes` (an encoded image), `image` (uint8, HxWxC, once it is decoded) and
`seed` (int64 of shape [2]), the only source of randomness. Random choices follow
arXiv:1409.4842, section 6 (inception_crop) and arXiv:1512.03385, section 4.2 (random_crop, flip);
resizing follows the code of arXiv:2205.01580 down to its rounding.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from vit_registers.data import op_strings
from vit_registers.data.op_strings import Target
from vit_registers.errors import ConfigError

Example = dict[str, tf.Tensor]
Op = Callable[[Example], Example]


def decode(target: Target) -> Op:
    """Decodes JPEG or PNG to the channels of the target; colour to grey and back as libjpeg and libpng do."""

    def apply(example: Example) -> Example:
        image_HxWxC = tf.io.decode_jpeg(  # despite its name it decodes PNG too
            example["bytes"], channels=target.channels, dct_method="INTEGER_ACCURATE"
        )
        return {**example, "image": image_HxWxC}

    return apply


def inception_crop(
    target: Target,
    area_min: float = 0.05,
    area_max: float = 1.0,
    aspect_min: float = 0.75,
    aspect_max: float = 1.33,
) -> Op:
    """A random part of the image, resized to the target.

    The part has a share of the area in [area_min, area_max] and width / height in [aspect_min, aspect_max];
    the whole image is taken when 100 draws do not fit. Of a JPEG that is not decoded yet only the part is
    decoded. Resizing is bilinear without antialias, as in arXiv:2205.01580.
    """
    if not 0 < area_min <= area_max <= 1:
        raise ConfigError(
            f"inception_crop: area_min={area_min}, area_max={area_max}: want 0 < min <= max <= 1"
        )
    if not 0 < aspect_min <= aspect_max:
        raise ConfigError(
            f"inception_crop: aspect_min={aspect_min}, aspect_max={aspect_max}: want 0 < min <= max"
        )
    decode_whole = decode(target)

    def box(shape: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=(aspect_min, aspect_max),
            area_range=(area_min, area_max),
            max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )
        return start[:2], size[:2]

    def crop_decoded(image_HxWxC: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        start, size = box(tf.shape(image_HxWxC), seed)
        return tf.slice(image_HxWxC, tf.concat([start, [0]], 0), tf.concat([size, [-1]], 0))

    def crop_jpeg(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        start, size = box(tf.io.extract_jpeg_shape(data), seed)
        return tf.io.decode_and_crop_jpeg(
            data, tf.concat([start, size], 0), channels=target.channels, dct_method="INTEGER_ACCURATE"
        )

    def apply(example: Example) -> Example:
        seed = example["seed"]
        if "image" in example:
            part_HxWxC = crop_decoded(example["image"], seed)
        else:
            part_HxWxC = tf.cond(
                tf.io.is_jpeg(example["bytes"]),
                lambda: crop_jpeg(example["bytes"], seed),
                lambda: crop_decoded(decode_whole(example)["image"], seed),
            )
        part_HxWxC.set_shape([None, None, target.channels])
        return {**example, "image": _resize(part_HxWxC, (target.height, target.width), "bilinear")}

    return apply


def random_crop(target: Target, padding: int = 4) -> Op:
    """A random part of target size of the image padded with `padding` pixels of zeros on each side."""
    if padding < 0:
        raise ConfigError(f"random_crop: padding={padding}: want >= 0")

    def apply(example: Example) -> Example:
        image_HxWxC = tf.pad(example["image"], [[padding, padding], [padding, padding], [0, 0]])
        size, room = _fit(image_HxWxC, target)
        # a float draw, as the integer one wants its limits to be scalars
        draw = tf.random.stateless_uniform([2], example["seed"])
        start = tf.minimum(tf.cast(draw * tf.cast(room + 1, tf.float32), tf.int32), room)
        return {**example, "image": _part(image_HxWxC, start, size)}

    return apply


def flip(target: Target) -> Op:
    """The image or, in half of the cases, its mirror image (left and right exchanged)."""
    del target

    def apply(example: Example) -> Example:
        return {
            **example,
            "image": tf.image.stateless_random_flip_left_right(example["image"], example["seed"]),
        }

    return apply


def resize_small(target: Target, size: int) -> Op:
    """The image with its shorter side resized to `size` pixels by area, the other in proportion, rounded."""
    del target
    if size < 1:
        raise ConfigError(f"resize_small: size={size}: want >= 1")

    def apply(example: Example) -> Example:
        sides = tf.cast(tf.shape(example["image"])[:2], tf.float32)
        sides = tf.cast(tf.round(sides * (size / tf.reduce_min(sides))), tf.int32)
        return {**example, "image": _resize(example["image"], sides, "area")}

    return apply


def resize(target: Target) -> Op:
    """The image resized to the target, bilinear without antialias, whatever its aspect."""

    def apply(example: Example) -> Example:
        return {**example, "image": _resize(example["image"], (target.height, target.width), "bilinear")}

    return apply


def central_crop(target: Target) -> Op:
    """The middle part of target size; of an odd rest the larger half lies below and to the right.

    A side that is smaller than the target is left as it is: the loader refuses the image by name.
    """

    def apply(example: Example) -> Example:
        size, room = _fit(example["image"], target)
        return {**example, "image": _part(example["image"], room // 2, size)}

    return apply


OPS: dict[str, Callable[..., Op]] = {
    "decode": decode,
    "inception_crop": inception_crop,
    "random_crop": random_crop,
    "flip": flip,
    "resize_small": resize_small,
    "resize": resize,
    "central_crop": central_crop,
}
_DECODING = ("decode", "inception_crop")


def compose(text: str, target: Target, *, where: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function (bytes, seed) -> image_HxWxC (uint8) of an operation string.

    Decoding comes first unless the first operation decodes. Each operation draws from the seed folded
    with its place in the string. Errors in the string are ConfigErrors that name the setting `where`.
    """
    built: list[tuple[str, Any]] = op_strings.build(text, OPS, target, where=where)
    names = [name for name, _ in built]
    if "decode" in names[1:]:
        raise ConfigError(f"{where}={text!r}: decode can only come first")
    first = [] if names[:1] and names[0] in _DECODING else [decode(target)]

    def apply(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        example = {"bytes": data, "seed": seed}
        for op in first:
            example = op(example)
        for place, (_, op) in enumerate(built):
            op_seed = tf.random.experimental.stateless_fold_in(seed, tf.constant(place, tf.int64))
            example = op({**example, "seed": op_seed})
        return example["image"]

    return apply


def _resize(image_HxWxC: tf.Tensor, size: Any, method: str) -> tf.Tensor:
    image_HxWxC = tf.image.resize(image_HxWxC, size, method=method, antialias=False)
    image_HxWxC = tf.cast(image_HxWxC, tf.float32)  # a resize to the same size keeps uint8
    return tf.cast(tf.clip_by_value(image_HxWxC, 0.0, 255.0), tf.uint8)  # truncates


def _fit(image_HxWxC: tf.Tensor, target: Target) -> tuple[tf.Tensor, tf.Tensor]:
    sides = tf.shape(image_HxWxC)[:2]
    size = tf.minimum(sides, [target.height, target.width])
    return size, sides - size


def _part(image_HxWxC: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.slice(image_HxWxC, tf.concat([start, [0]], 0), tf.concat([size, [-1]], 0))
