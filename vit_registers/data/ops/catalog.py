"""The image operations of the tf.data loader, and their chaining. Imports TensorFlow.

There are two kinds. OPS are functions example -> example (decode.py) and may change the size of an image.
PIXEL_OPS keep the size; XLA compiles them wherever the size is known to be that of the target.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from vit_registers.data.batch import View
from vit_registers.data.ops import strings
from vit_registers.data.ops.crops import central_crop, inception_crop, random_crop, random_resized_crop
from vit_registers.data.ops.decode import Example, Op, decode
from vit_registers.data.ops.distortions import blur, grayscale, jitter, random_solarize
from vit_registers.data.ops.pixel_ops import PixelOp, compiled, draw, flip, fold_in
from vit_registers.data.ops.randaugment import randaugment
from vit_registers.data.ops.resize import resize, resize_small
from vit_registers.data.ops.strings import Target
from vit_registers.data.ops.three_augment import color_jitter, three_augment
from vit_registers.errors import ConfigError

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
    "jitter": jitter,
    "grayscale": grayscale,
    "blur": blur,
    "solarize": random_solarize,
}
_DECODING = ("decode", "inception_crop", "random_resized_crop")
# operations whose results have the target's size
_SIZING = ("inception_crop", "random_resized_crop", "random_crop", "resize", "central_crop")


def compose_views(
    views: Mapping[str, View], channels: int
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """The function (bytes, seed) -> {view: image_HxWxC (uint8)} that the operations of the views describe.

    The first view draws as `compose` does. For several views an image is decoded once. Raises ConfigError.
    """
    targets = {name: Target(view.height, view.width, channels) for name, view in views.items()}
    # Equal views share a chain, which XLA compiles once.
    alike = {
        view: compose(view.ops, targets[name], where=view.setting, is_decoded=len(views) > 1)
        for name, view in views.items()
    }
    chains = {name: alike[view] for name, view in views.items()}
    read = decode(Target(0, 0, channels))

    def apply(data: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        source = read({"bytes": data})["image"] if len(views) > 1 else data
        return {
            name: chain(source, fold_in(seed, tf.constant(-number, tf.int64)) if number else seed)
            for number, (name, chain) in enumerate(chains.items())
        }

    return apply


def compose(
    text: str, target: Target, *, where: str, is_decoded: bool = False
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function (bytes, seed) -> image_HxWxC (uint8) that an operation string describes.

    With `is_decoded`, of (image_HxWxC, seed), and the string must not begin with decode.

    It decodes the image first, unless the first operation does. Each operation draws from the seed folded
    with the operation's index in the string. Raises ConfigError, which names the setting `where`.
    """
    built: list[tuple[str, Any]] = strings.build(text, OPS | PIXEL_OPS, target, where=where)
    names = [name for name, _ in built]
    if "decode" in names[1:]:
        raise ConfigError(f"{where}={text!r}: decode must come first")
    if is_decoded and "decode" in names:
        raise ConfigError(f"{where}={text!r}: images of several views are decoded once: leave out decode")
    first = [] if is_decoded or (names[:1] and names[0] in _DECODING) else [decode(target)]
    stages = [*first, *_stages(built, target)]

    def apply(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        example = {"image" if is_decoded else "bytes": data}
        for stage in stages:
            example = stage({**example, "seed": seed})
        return example["image"]

    return apply


def _stages(built: list[tuple[str, Any]], target: Target) -> list[Op]:
    """Functions of an example with the chain's seed; pixel ops in a row are one if the size is known."""
    stages: list[Op] = []
    row: list[tuple[int, PixelOp]] = []  # with the size of the target
    has_size = False
    for place, (name, op) in enumerate(built):
        if isinstance(op, PixelOp) and has_size:
            row.append((place, op))
            continue
        if row:
            stages.append(_compiled_stage(row, target))
            row = []
        stages.append(_stage(place, op))
        has_size = name in _SIZING
    return [*stages, _compiled_stage(row, target)] if row else stages


def _stage(place: int, op: Op | PixelOp) -> Op:
    def apply(example: Example) -> Example:
        seed = fold_in(example["seed"], tf.constant(place, tf.int64))
        if isinstance(op, PixelOp):
            return {**example, "image": op.apply(example["image"], draw(op, seed))}
        return op({**example, "seed": seed})

    return apply


def _compiled_stage(row: list[tuple[int, PixelOp]], target: Target) -> Op:
    run = compiled([op for _, op in row], target)

    def apply(example: Example) -> Example:
        seed = example["seed"]
        draws = [draw(op, fold_in(seed, tf.constant(place, tf.int64))) for place, op in row]
        return {**example, "image": run(example["image"], draws)}

    return apply
