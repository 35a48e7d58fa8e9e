"""Operations that keep the size of an image; XLA compiles a chain of them as one. Imports TensorFlow."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from vit_registers.data.ops.strings import Target


class PixelOp(NamedTuple):
    """An operation (image_HxWxC uint8, draw_N) -> image_HxWxC uint8 of the same size.

    draw_N are `num_draws` float32 numbers, uniform in [0, 1), the operation's only randomness. `apply` is
    traced with static shapes, and XLA must be able to compile it.
    """

    num_draws: int
    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def static_shape(image_HxWxC: tf.Tensor) -> tuple[int, int, int]:
    """(height, width, channels) of an image whose shape is known when it is traced."""
    height, width, channels = image_HxWxC.shape
    assert height is not None and width is not None and channels is not None, image_HxWxC.shape
    return height, width, channels


def flip(target: Target) -> PixelOp:
    """The image or, with probability 1/2, its mirror image (left and right exchanged)."""

    def apply(image_HxWxC: tf.Tensor, draw_1: tf.Tensor) -> tf.Tensor:
        return tf.where(draw_1[0] < 0.5, image_HxWxC[:, ::-1], image_HxWxC)

    return PixelOp(1, apply)


def fold_in(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """A new seed, int64 of shape [2], from a seed and a number."""
    return tf.random.experimental.stateless_fold_in(seed, number)  # pyright: ignore[reportAttributeAccessIssue]


def draw(op: PixelOp, seed: tf.Tensor) -> tf.Tensor:
    """The numbers draw_N for `op`, a function of the seed."""
    return tf.random.stateless_uniform([op.num_draws], seed, alg="philox")


def compiled(ops: list[PixelOp], target: Target) -> Callable[[tf.Tensor, list[tf.Tensor]], tf.Tensor]:
    """A function (image_HxWxC, draws of each op) -> image after all ops, compiled as one by XLA.

    It returns an image of another size than the target's unchanged; the loader then fails with its name.
    """

    @tf.function(jit_compile=True, autograph=False)
    def apply(image_HxWxC: tf.Tensor, draws: list[tf.Tensor]) -> tf.Tensor:
        for op, draw_N in zip(ops, draws, strict=True):
            image_HxWxC = op.apply(image_HxWxC, draw_N)
        return image_HxWxC

    def guarded(image_HxWxC: tf.Tensor, draws: list[tf.Tensor]) -> tf.Tensor:
        if image_HxWxC.shape.is_fully_defined():
            return apply(image_HxWxC, draws)
        fits = tf.reduce_all(tf.shape(image_HxWxC) == tf.constant(target))
        return tf.cond(fits, lambda: apply(tf.ensure_shape(image_HxWxC, target), draws), lambda: image_HxWxC)

    return guarded
