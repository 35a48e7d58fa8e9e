"""PIL's Image.resize of 8-bit images, level for level, compiled by XLA. Imports TensorFlow.

PIL resizes one axis after the other, each as sums of `taps` neighbouring rows with 22-bit integer weights
rounded to 8 bits; so does this. Letters: I rows in, O rows out, T taps, V values in a row.
"""

from collections.abc import Callable

import tensorflow as tf

_BITS = 22  # of the weights' fraction
# XLA compiles anew for every shape (0.1 s), so sides are padded: of the image to one of 8 up to 512 and of 4
# per octave beyond; of the result, which in training has one size, to multiples.
_SIDES = [64 * k for k in range(1, 9)] + [2**e * k for e in range(7, 22) for k in (5, 6, 7, 8)]
_STEP = 32

_TABLE = tf.TensorSpec([None, None], tf.int32)
_INTS = tf.TensorSpec([None], tf.int32)
_FLOATS, _FLOAT = tf.TensorSpec([None], tf.float64), tf.TensorSpec([], tf.float64)


def pil_resize(
    kernel: Callable[[tf.Tensor], tf.Tensor], radius: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (image_HxWxC uint8, (height, width)) -> resized image: PIL's Image.resize, antialiased.

    `kernel` gives the weight at a distance, 0 beyond `radius`, in pixels of the smaller of the two images.
    The horizontal pass comes first, as in Pillow up to 12; Pillow 13 takes the vertical one first where the
    height shrinks clearly more than the width, which changes levels by a few. PIL leaves out a pass that
    keeps the size; here its weights are 1 and 0, so that it changes nothing.
    """

    @tf.function(jit_compile=True, autograph=False, input_signature=[_TABLE, _INTS, _FLOATS, _FLOAT])
    def weigh(source_OxT: tf.Tensor, end_O: tf.Tensor, center_O: tf.Tensor, stretch: tf.Tensor) -> tf.Tensor:
        weight_OxT = kernel(tf.abs(tf.cast(source_OxT, tf.float64) - center_O[:, None] + 0.5) / stretch)
        weight_OxT = weight_OxT * tf.cast(source_OxT < end_O[:, None], tf.float64)
        weight_OxT = tf.math.divide_no_nan(weight_OxT, tf.reduce_sum(weight_OxT, 1, keepdims=True))
        return tf.cast(weight_OxT * 2**_BITS + 0.5 * tf.sign(weight_OxT), tf.int32)

    def resize_rows(rows_IxV: tf.Tensor, size: tf.Tensor, out: tf.Tensor) -> tf.Tensor:
        """The first `size` rows to `out` rows, and some more that mean nothing."""
        ratio = tf.cast(size, tf.float64) / tf.cast(out, tf.float64)
        reach = radius * tf.maximum(ratio, 1.0)
        center_O = (tf.cast(tf.range(_padded(out)), tf.float64) + 0.5) * ratio
        # not compiled, as XLA computes twice what it needs twice, and may round it otherwise
        first_O = tf.maximum(tf.cast(center_O - reach + 0.5, tf.int32), 0)
        end_O = tf.minimum(tf.cast(center_O + reach + 0.5, tf.int32), size)
        taps = 2 * tf.cast(tf.math.ceil(reach), tf.int32) + 1
        source_OxT = first_O[:, None] + tf.range(taps)
        weight_OxT = weigh(source_OxT, end_O, center_O, tf.maximum(ratio, 1.0))
        return _combine(rows_IxV, tf.minimum(source_OxT, size - 1), weight_OxT)

    def apply(image_HxWxC: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
        height, width, _ = tf.unstack(tf.shape(image_HxWxC), num=3)
        channels = image_HxWxC.shape[-1]
        pad_height, pad_width = tf.unstack(tf.gather(_SIDES, tf.searchsorted(_SIDES, [height, width])))
        out_width = _padded(sides[1])
        rows = _extended(tf.reshape(image_HxWxC, [height, width * channels]), pad_height)
        columns = tf.reshape(tf.transpose(rows), [width, channels * pad_height])
        columns = resize_rows(_extended(columns, pad_width), width, sides[1])
        rows = tf.transpose(tf.reshape(columns, [out_width * channels, pad_height]))
        rows = resize_rows(rows, height, sides[0])
        return tf.reshape(rows, [-1, out_width, channels])[: sides[0], : sides[1]]

    return apply


def bilinear(distance: tf.Tensor) -> tf.Tensor:
    """The weight 1 - distance, of radius 1."""
    return tf.maximum(1.0 - distance, 0.0)


def bicubic(distance: tf.Tensor) -> tf.Tensor:
    """The weight of cubic convolution with a = -0.5 (Keys, 1981), of radius 2."""
    near = ((1.5 * distance - 2.5) * distance) * distance + 1.0
    far = -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return tf.where(distance < 1.0, near, tf.where(distance < 2.0, far, tf.zeros_like(far)))


@tf.function(
    jit_compile=True,
    autograph=False,
    input_signature=[tf.TensorSpec([None, None], tf.uint8), _TABLE, _TABLE],
)
def _combine(rows_IxV: tf.Tensor, source_OxT: tf.Tensor, weight_OxT: tf.Tensor) -> tf.Tensor:
    taken_OxTxV = tf.cast(tf.gather(rows_IxV, source_OxT), tf.int32)
    sum_OxV = tf.reduce_sum(taken_OxTxV * weight_OxT[..., None], 1) + 2 ** (_BITS - 1)
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(sum_OxV, _BITS), 0, 255), tf.uint8)


def _padded(side: tf.Tensor) -> tf.Tensor:
    return (side + _STEP - 1) // _STEP * _STEP


def _extended(rows_IxV: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """With rows of zeros below up to `number` of them: concat copies rows, where tf.pad would copy values."""
    missing = tf.stack([number - tf.shape(rows_IxV)[0], tf.shape(rows_IxV)[1]])
    return tf.concat([rows_IxV, tf.zeros(missing, tf.uint8)], 0)
