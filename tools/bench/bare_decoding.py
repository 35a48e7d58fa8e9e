"""Decoding of the images of a loader in plain tf.data, which bench.input measures the loader against."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from vit_registers.config.strings import parse_calls
from vit_registers.data import order, streams
from vit_registers.data.batch import View
from vit_registers.data.ops import catalog, crops
from vit_registers.data.ops.decode import Box, decode, decode_part
from vit_registers.data.ops.resize import resize_to
from vit_registers.data.ops.strings import EXAMPLE, Target
from vit_registers.data.sources.folder import Folder

TARGET = Target(224, 224, 3)
BATCH = 64
BOXES = {"inception_crop": crops.inception_box, "random_resized_crop": crops.random_resized_box}

Decode = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (bytes, seed of shape [2]) -> image_HxWxC


def bare_train(root: Path, decode_one: Decode) -> Iterator[int]:
    """Endless batches of the results of `decode_one`, in the loader's order."""
    source = Folder(root)
    training = order.Order(seed=0, num_examples=source.num_examples("train"), batch_size=BATCH)
    share = streams.Share(BATCH, 0, 1)
    yield from bare(
        streams.train_stream(source, "train", share, training, start_step=0, buffer=1), decode_one
    )


def bare_evaluation(root: Path, decode_one: Decode) -> Iterator[int]:
    """The split in order, repeated."""
    source = Folder(root)
    while True:
        yield from bare(streams.eval_stream(source, "val", streams.Share(BATCH, 0, 1)), decode_one)


def bare(chunks: tf.data.Dataset, decode_one: Decode) -> Iterator[int]:
    """Batches of the results of `decode_one` for the files of a stream."""

    def one(chunk: streams.Chunk) -> tf.Tensor:
        return decode_one(chunk["bytes"], tf.stack([tf.constant(0, tf.int64), chunk["position"]]))

    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    images = chunks.unbatch().map(one, num_parallel_calls=tf.data.AUTOTUNE)
    for batch in images.batch(BATCH).prefetch(2).with_options(options).as_numpy_iterator():
        yield len(batch)


def crop_box(train_ops: str) -> Box:
    """The function that draws the box of the crop at the start of a chain."""
    crop = parse_calls(train_ops, catalog.OPS | catalog.PIXEL_OPS, where="train_ops", example=EXAMPLE)[0]
    defaults = {name: p.default for name, p in inspect.signature(catalog.OPS[crop.name]).parameters.items()}
    settings = defaults | crop.arguments
    areas = settings["area_min"], settings["area_max"]
    aspects = settings["aspect_min"], settings["aspect_max"]
    return lambda shape, seed: BOXES[crop.name](shape, seed, areas, aspects)


def decode_crop(train_ops: str, *, is_resized: bool) -> Decode:
    """Decodes the part that the chain's crop draws, and flips it. Returns its height if it is not resized."""
    box, resize = crop_box(train_ops), resize_to(TARGET, "bilinear")

    def apply(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        image_HxWxC = decode_part({"bytes": data, "seed": seed}, box, TARGET)
        if is_resized:
            return tf.image.stateless_random_flip_left_right(resize(image_HxWxC), seed)
        return tf.shape(tf.image.stateless_random_flip_left_right(image_HxWxC, seed))[0]

    return apply


def decode_whole(data: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Decodes the whole image and resizes it."""
    return resize_to(TARGET, "bilinear")(decode(TARGET)({"bytes": data, "seed": seed})["image"])


def first_op(view: View) -> View:
    """The view with only the first operation, its crop."""
    return view._replace(ops=view.ops.split(" | ")[0])


def decode_crops(views: Mapping[str, View]) -> Decode:
    """Decodes the whole image, cuts and resizes the crops of all views. Returns the sum of a few levels."""
    apply = catalog.compose_views({name: first_op(view) for name, view in views.items()}, TARGET.channels)
    return lambda data, seed: tf.add_n(
        [tf.reduce_sum(tf.cast(crop[:, 0, 0], tf.int32)) for crop in apply(data, seed).values()]
    )
