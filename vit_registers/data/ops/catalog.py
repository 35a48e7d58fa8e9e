"""Image operations of the tf.data loader, and how they are chained. Imports TensorFlow.

Two kinds: OPS are functions example -> example (decode.py) and may change the size of an image;
PIXEL_OPS keep it, and run compiled wherever the size is known to be the target's.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from vit_registers.config import lookup
from vit_registers.data.ops import strings
from vit_registers.data.ops.crops import inception_crop, random_resized_crop
from vit_registers.data.ops.decode import Example, Op, decode
from vit_registers.data.ops.pixel_ops import PixelOp, compiled, draw, flip
from vit_registers.data.ops.randaugment import randaugment
from vit_registers.data.ops.resize import METHODS, resize_to
from vit_registers.data.ops.strings import Target
from vit_registers.data.ops.three_augment import color_jitter, three_augment
from vit_registers.errors import ConfigError


def random_crop(target: Target, padding: int = 4) -> Op:
    """A random part of target size of the image padded with `padding` pixels of zeros on each side
    (arXiv:1512.03385, section 4.2)."""
    if padding < 0:
        raise ConfigError(f"random_crop: padding={padding}: want >= 0")

    def apply(example: Example) -> Example:
        image_HxWxC = tf.pad(example["image"], [[padding, padding], [padding, padding], [0, 0]])
        size, room = _fit(image_HxWxC, target)
        # a float draw, as the integer one wants its limits to be scalars
        draw_2 = tf.random.stateless_uniform([2], example["seed"])
        start = tf.minimum(tf.cast(draw_2 * tf.cast(room + 1, tf.float32), tf.int32), room)
        return {**example, "image": _part(image_HxWxC, start, size)}

    return apply


def resize_small(target: Target, size: int, method: str = "area") -> Op:
    """The image with its shorter side resized to `size` pixels, the other in proportion.

    The longer side is rounded, as in the code of arXiv:2205.01580; with PIL's methods it is truncated, as by
    torchvision's Resize (and an image whose shorter side is `size` already comes out as it was).
    """
    del target
    if size < 1:
        raise ConfigError(f"resize_small: size={size}: want >= 1")
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
    """The image resized to the target, whatever its aspect."""
    resize_image = resize_to(target, method)
    return lambda example: {**example, "image": resize_image(example["image"])}


def central_crop(target: Target, rounding: str = "floor") -> Op:
    """The middle part of target size.

    Half of an odd rest is rounded down for the part above and to the left of it, as in the code of
    arXiv:2205.01580; with rounding="half_even" to the even neighbour, as by torchvision's CenterCrop. A side
    that is smaller than the target is left as it is: the loader refuses the image by name.
    """
    half = lookup({"floor": tf.floor, "half_even": tf.round}, rounding, "central_crop: rounding")

    def apply(example: Example) -> Example:
        size, room = _fit(example["image"], target)
        return {**example, "image": _part(example["image"], tf.cast(half(room / 2), tf.int32), size)}

    return apply


OPS: dict[str, Callable[..., Op]] = {
    "decode": decode,
    "inception_crop": inception_crop,
    "random_resized_crop": random_resized_crop,
    "random_crop": random_crop,
    "resize_small": resize_small,
    "resize": resize,
    "central_crop": central_crop,
}
PIXEL_OPS: dict[str, Callable[..., PixelOp]] = {
    "flip": flip,
    "randaugment": randaugment,
    "three_augment": three_augment,
    "color_jitter": color_jitter,
}
_DECODING = ("decode", "inception_crop", "random_resized_crop")
_SIZING = (  # what leaves the target's size
    "inception_crop",
    "random_resized_crop",
    "random_crop",
    "resize",
    "central_crop",
)


def compose(text: str, target: Target, *, where: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function (bytes, seed) -> image_HxWxC (uint8) of an operation string.

    Decoding comes first unless the first operation decodes. Each operation draws from the seed folded
    with its place in the string. Errors in the string are ConfigErrors that name the setting `where`.
    """
    built: list[tuple[str, Any]] = strings.build(text, OPS | PIXEL_OPS, target, where=where)
    names = [name for name, _ in built]
    if "decode" in names[1:]:
        raise ConfigError(f"{where}={text!r}: decode can only come first")
    first = [] if names[:1] and names[0] in _DECODING else [decode(target)]
    stages = _stages(built, target)

    def apply(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        example = {"bytes": data, "seed": seed}
        for op in first:
            example = op(example)
        for stage in stages:
            example = stage({**example, "seed": seed})
        return example["image"]

    return apply


def _stages(built: list[tuple[str, Any]], target: Target) -> list[Op]:
    """The operations as functions of an example with the seed of the whole chain; pixel operations in a
    row, after one that leaves the target's size, as one compiled function."""
    stages: list[Op] = []
    row: list[tuple[int, PixelOp]] = []
    has_size = False
    for place, (name, op) in enumerate(built):
        if isinstance(op, PixelOp) and has_size:
            row.append((place, op))
            continue
        if row:
            stages.append(_compiled_stage(row, target))
            row = []
        stages.append(_stage(place, op))
        has_size = name in _SIZING or (has_size and isinstance(op, PixelOp))
    return [*stages, _compiled_stage(row, target)] if row else stages


def _stage(place: int, op: Op | PixelOp) -> Op:
    def apply(example: Example) -> Example:
        seed = _fold(example["seed"], place)
        if isinstance(op, PixelOp):
            return {**example, "image": op.apply(example["image"], draw(op, seed))}
        return op({**example, "seed": seed})

    return apply


def _compiled_stage(row: list[tuple[int, PixelOp]], target: Target) -> Op:
    run = compiled([op for _, op in row], target)

    def apply(example: Example) -> Example:
        draws = [draw(op, _fold(example["seed"], place)) for place, op in row]
        return {**example, "image": run(example["image"], draws)}

    return apply


def _fold(seed: tf.Tensor, place: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, tf.constant(place, tf.int64))


def _fit(image_HxWxC: tf.Tensor, target: Target) -> tuple[tf.Tensor, tf.Tensor]:
    sides = tf.shape(image_HxWxC)[:2]
    size = tf.minimum(sides, [target.height, target.width])
    return size, sides - size


def _part(image_HxWxC: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    return tf.slice(image_HxWxC, tf.concat([start, [0]], 0), tf.concat([size, [-1]], 0))
