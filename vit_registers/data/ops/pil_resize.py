"""PIL's Image.resize of 8-bit images, level for level, compiled by XLA. Imports TensorFlow.

Like PIL, it resizes one axis after the other, each by sums of neighbouring levels (taps) with 22-bit integer
weights, rounded to 8 bits. Letters: V rows, I values in a row (columns times C channels), J words of 4 values
in a row, O columns of the result, T taps.
"""

from collections.abc import Callable

import tensorflow as tf

_BITS = 22  # of the weights' fraction
# XLA compiles once for every shape (0.2 s), so sides are padded: the image's to one of 4 sizes up to 512 and
# of 2 per octave beyond, the result's, which has one size in training, to multiples of _STEP.
_SIDES = [128, 256, 384] + [2**e * k for e in range(8, 22) for k in (2, 3)]
_STEP = 32

_TABLE, _INDEX = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None, None], tf.int32)


def pil_resize(
    kernel: Callable[[tf.Tensor], tf.Tensor], radius: int
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (image_HxWxC uint8, (height, width)) -> resized image: PIL's Image.resize, antialiased.

    `kernel` maps a distance to a weight, which is 0 beyond `radius`; both are in pixels of the smaller of the
    two images. The horizontal pass comes first, as in Pillow up to 12. Pillow 13 begins with the vertical
    pass where the height shrinks clearly more than the width, which changes some levels slightly. PIL skips a
    pass that keeps the size; here the weights of such a pass are 1 and 0, so that it changes nothing.
    """

    @tf.function(jit_compile=True, autograph=False)
    def weigh(
        place_O: tf.Tensor, tap_T: tf.Tensor, size: tf.Tensor, out: tf.Tensor, channels: int
    ) -> list[tf.Tensor]:
        """word_OxCxT, shift_OxCxT and weight_OxT: the levels, among those of `size` columns, that each of
        `out` columns is the sum of, as word and shift in it, and their weights."""
        ratio = tf.cast(size, tf.float64) / tf.cast(out, tf.float64)
        stretch = tf.maximum(ratio, 1.0)
        # prevents XLA from contracting a * b + c to one rounding (FMA); otherwise without effect
        center_O = tf.minimum((tf.cast(place_O, tf.float64) + 0.5) * ratio, 1e9)
        first_O = tf.maximum(tf.cast(center_O - radius * stretch + 0.5, tf.int32), 0)
        end_O = tf.minimum(tf.cast(center_O + radius * stretch + 0.5, tf.int32), size)
        source_OxT = first_O[:, None] + tap_T
        weight_OxT = kernel(tf.abs(tf.cast(source_OxT, tf.float64) - center_O[:, None] + 0.5) / stretch)
        weight_OxT = weight_OxT * tf.cast(source_OxT < end_O[:, None], tf.float64)
        weight_OxT = tf.math.divide_no_nan(weight_OxT, tf.reduce_sum(weight_OxT, 1, keepdims=True))
        weight_OxT = tf.cast(weight_OxT * 2**_BITS + 0.5 * tf.sign(weight_OxT), tf.int32)
        byte_OxCxT = tf.minimum(source_OxT, size - 1)[:, None] * channels + tf.range(channels)[:, None]
        return [byte_OxCxT // 4, 8 * (byte_OxCxT % 4), weight_OxT]

    def resize_columns(rows_VxI: tf.Tensor, channels: int, size: tf.Tensor, out: tf.Tensor) -> tf.Tensor:
        """The first `size` columns resized to `out`, then columns of padding; transposed: (O and C)xV."""
        # as many taps as the widest image of these padded sides needs: one shape for all of them
        widest = tf.cast(tf.shape(rows_VxI)[1] // channels, tf.float64) / tf.cast(out, tf.float64)
        taps = tf.cast(tf.math.ceil(2 * radius * tf.maximum(widest, 1.0)), tf.int32)
        words_VxJ = tf.bitcast(tf.reshape(rows_VxI, [tf.shape(rows_VxI)[0], -1, 4]), tf.int32)
        weights = weigh(tf.range(_padded(out)), tf.range(taps), size, out, channels)
        return _combine(tf.transpose(words_VxJ), *weights)

    def apply(image_HxWxC: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
        height, width, _ = tf.unstack(tf.shape(image_HxWxC), num=3)
        channels = image_HxWxC.shape[-1]
        assert channels is not None
        pad_height, pad_width = tf.unstack(tf.gather(_SIDES, tf.searchsorted(_SIDES, [height, width])))
        missing_2x2 = tf.stack([[0, pad_height - height], [0, (pad_width - width) * channels]])
        rows = tf.pad(tf.reshape(image_HxWxC, [height, width * channels]), missing_2x2)
        columns = resize_columns(rows, channels, width, sides[1])
        rows = resize_columns(columns, 1, height, sides[0])
        return tf.reshape(rows, [tf.shape(rows)[0], -1, channels])[: sides[0], : sides[1]]

    return apply


def bilinear_kernel(distance: tf.Tensor) -> tf.Tensor:
    """The weight 1 - distance; its radius is 1."""
    return tf.maximum(1.0 - distance, 0.0)


def bicubic_kernel(distance: tf.Tensor) -> tf.Tensor:
    """The weight of cubic convolution with a = -0.5 (Keys, 1981); its radius is 2."""
    near = ((1.5 * distance - 2.5) * distance) * distance + 1.0
    far = -0.5 * (((distance - 5.0) * distance + 8.0) * distance - 4.0)
    return tf.where(distance < 1.0, near, tf.where(distance < 2.0, far, tf.zeros_like(far)))


@tf.function(jit_compile=True, autograph=False, input_signature=[_TABLE, _INDEX, _INDEX, _TABLE])
def _combine(
    words_JxV: tf.Tensor, word_OxCxT: tf.Tensor, shift_OxCxT: tf.Tensor, weight_OxT: tf.Tensor
) -> tf.Tensor:
    """The weighted sums, (O and C)xV, of bytes in words: TensorFlow transposes words far faster."""
    word_OxCxTxV = tf.gather(words_JxV, word_OxCxT)
    level_OxCxTxV = tf.bitwise.right_shift(word_OxCxTxV, tf.expand_dims(shift_OxCxT, -1)) & 255
    sum_OxCxV = tf.reduce_sum(level_OxCxTxV * weight_OxT[:, None, :, None], 2) + 2 ** (_BITS - 1)
    level_OxCxV = tf.cast(tf.clip_by_value(tf.bitwise.right_shift(sum_OxCxV, _BITS), 0, 255), tf.uint8)
    return tf.reshape(level_OxCxV, [-1, tf.shape(words_JxV)[1]])


def _padded(side: tf.Tensor) -> tf.Tensor:
    return (side + _STEP - 1) // _STEP * _STEP
