"""Encoded images and labels as tf.data streams, in training or evaluation order. Imports TensorFlow.

A stream yields chunks, dicts of `bytes`, `label`, `record` (its number in the split) and `position`
(global, see order.py), each of shape [n] with n <= CHUNK. Chunks rather than single examples, because
decoding guards against broken images once for each chunk (see pipeline.py).
"""

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from vit_registers.data import order
from vit_registers.data.order import Order
from vit_registers.data.sources.folder import Folder
from vit_registers.data.sources.tfds_prepared import MAX_LABELS, RecordFile, TfdsData
from vit_registers.errors import ConfigError, DataError

CHUNK = 32
_PARALLEL_READS = 16
_MAX = np.iinfo(np.int64).max

Chunk = dict[str, tf.Tensor]


class Share(NamedTuple):
    """This process's part of the global batches."""

    batch_size: int  # global
    process_index: int
    process_count: int

    def positions(self, local_N: tf.Tensor) -> tf.Tensor:
        """The global positions of this process's local ones."""
        local_size = self.batch_size // self.process_count
        return (
            local_N // local_size * self.batch_size + self.process_index * local_size + local_N % local_size
        )


def train_stream(
    source: Folder | TfdsData, split: str, share: Share, training: Order, *, start_step: int, buffer: int
) -> tf.data.Dataset:
    """The endless stream of chunks from the first example of step `start_step` on.

    TFRecord files are shuffled by file and through `buffer` examples; raises ConfigError where `training`
    asks for more than that.
    """
    start = start_step * (share.batch_size // share.process_count)
    if isinstance(source, TfdsData) and not source.is_random_access:
        if training.repeats > 1 or training.drop_last:
            raise ConfigError(
                f"data.repeats and data.drop_last want random access; {source.name} is of TFRecord files: "
                "prepare it anew with vit_registers.prepare, which writes array_record"
            )
        return _train_files(source, split, share, start=start, seed=training.seed, shuffle_buffer=buffer)
    return _read_at(source, split, share, tf.data.Dataset.range(start, _MAX), training.records)


def eval_stream(source: Folder | TfdsData, split: str, share: Share) -> tf.data.Dataset:
    """The stream of this process's share of the split, in order, each example once."""
    number = source.num_examples(split)
    if isinstance(source, TfdsData) and not source.is_random_access:
        files = _own_files(source, split, share)
        local = tf.data.Dataset.range(sum(file.take for file in files))
        examples = tf.data.Dataset.zip(local, _read_files(files, tf.range(len(files)), cycle=1))
        return _parse(examples, source, share)
    number = order.num_positions(
        number, share.batch_size, process_index=share.process_index, process_count=share.process_count
    )
    return _read_at(source, split, share, tf.data.Dataset.range(number), lambda position_N: position_N)


def num_eval_batches(source: Folder | TfdsData, split: str, share: Share) -> int:
    """How many batches every process yields for the split: as many as the one with most examples needs."""
    number = source.num_examples(split)
    if isinstance(source, TfdsData) and not source.is_random_access:
        largest_part = math.ceil(number / share.process_count)
        return math.ceil(largest_part / (share.batch_size // share.process_count))
    return math.ceil(number / share.batch_size)


# --- random access: array_record files and folders ---------------------------------------------


def _read_at(
    source: Folder | TfdsData,
    split: str,
    share: Share,
    local: tf.data.Dataset,
    records: Callable[[np.ndarray], np.ndarray],
) -> tf.data.Dataset:
    read = (
        _folder_reader(source, split) if isinstance(source, Folder) else _array_record_reader(source, split)
    )

    def chunk(local_N: tf.Tensor) -> Chunk:
        position_N = share.positions(local_N)
        record_N = tf.numpy_function(records, [position_N], tf.int64)
        record_N.set_shape([None])
        data_N, label_N = read(record_N)
        return {"bytes": data_N, "label": label_N, "record": record_N, "position": position_N}

    return local.batch(CHUNK).map(chunk, num_parallel_calls=_PARALLEL_READS, deterministic=True)


def _folder_reader(folder: Folder, split: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    files, labels = folder.files(split)
    root = os.fsencode(folder.root)
    path_N = tf.constant(
        [os.path.join(root, os.fsencode(file)) for file in files]
    )  # bytes: any name is valid
    label_N = tf.constant(labels, tf.int32)

    def read(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _read_files_at(tf.gather(path_N, record_N)), tf.gather(label_N, record_N)

    return read


def _read_files_at(path_N: tf.Tensor) -> tf.Tensor:
    """What the files hold; no bytes, as for a broken image, where one cannot be read.

    Datasets serve to catch errors, as in pipeline.py. One for each file is slower than one for all, so that
    files are read one by one only where that fails.
    """

    def read_all(path_N: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(tf.io.read_file, path_N, parallel_iterations=CHUNK)

    def read_each(path_N: tf.Tensor) -> tf.Tensor:
        number = tf.size(path_N)
        numbered = tf.data.Dataset.from_tensor_slices((tf.range(number), path_N))
        read = numbered.map(lambda place, path: (place, tf.io.read_file(path)), num_parallel_calls=CHUNK)
        missing = tf.data.Dataset.from_tensors((-1, b""))
        found = read.ignore_errors().concatenate(missing).batch(CHUNK + 1).get_single_element()
        place_N, data_N = (column[:-1] for column in found)
        return tf.tensor_scatter_nd_update(tf.fill([number], b""), place_N[:, None], data_N)

    paths = tf.data.Dataset.from_tensors(path_N)
    return paths.map(read_all).ignore_errors().concatenate(paths.map(read_each)).take(1).get_single_element()


def _array_record_reader(data: TfdsData, split: str) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    reader = data.serialized(split)

    def lookup(record_N: np.ndarray) -> np.ndarray:
        # not all at once by __getitems__, which makes new threads for every call: chunks are read in parallel
        found = [reader[i] for i in record_N]
        if not all(found):  # as the reader gives it where a part of a file is damaged
            raise ValueError(f"record {record_N[found.index(b'')]} is empty")
        return np.array(found, dtype=object)

    def read(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        serialized_N = tf.numpy_function(lookup, [record_N], tf.string)
        serialized_N.set_shape([None])
        return _parse_examples(serialized_N, data)

    return read


# --- sequential: TFRecord files ------------------------------------------------------------------


def _train_files(
    data: TfdsData, split: str, share: Share, *, start: int, seed: int, shuffle_buffer: int
) -> tf.data.Dataset:
    files = _own_files(data, split, share)
    number = sum(file.take for file in files)
    if number == 0:
        raise DataError(f"split '{split}' of {data.name} has fewer records than there are processes")
    first_epoch, skipped = divmod(start, number)

    def epoch_examples(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        order_F = tf.random.experimental.stateless_shuffle(tf.range(len(files)), epoch_seed)
        buffer_seed = tf.random.stateless_uniform([], epoch_seed, None, None, tf.int64)
        examples = _read_files(files, order_F, cycle=_PARALLEL_READS)
        examples = examples.shuffle(min(shuffle_buffer, number), seed=buffer_seed)
        examples = tf.data.Dataset.zip(tf.data.Dataset.range(epoch * number, (epoch + 1) * number), examples)
        # serialized examples are dropped here, before anything is decoded
        return examples.skip(tf.where(epoch == first_epoch, tf.constant(skipped, tf.int64), 0))

    return _parse(tf.data.Dataset.range(first_epoch, _MAX).flat_map(epoch_examples), data, share)


def _own_files(data: TfdsData, split: str, share: Share) -> list[RecordFile]:
    start, stop = order.share_of_records(
        data.num_examples(split), process_index=share.process_index, process_count=share.process_count
    )
    return data.files(split, start=start, stop=stop)


def _read_files(files: list[RecordFile], order_F: tf.Tensor, *, cycle: int) -> tf.data.Dataset:
    """(record number, serialized example) of all files, `cycle` of them interleaved, in the order given."""
    path_F = tf.constant([file.path for file in files], tf.string)
    cycle = max(min(cycle, len(files)), 1)
    skip_F, take_F, first_F = (tf.constant([file[i] for file in files], tf.int64) for i in (1, 2, 3))

    def read(index: tf.Tensor) -> tf.data.Dataset:
        first, take = first_F[index], take_F[index]
        records = tf.data.TFRecordDataset(path_F[index]).skip(skip_F[index]).take(take)
        # A file that was cut off would else end early without a word.
        records = records.apply(tf.data.experimental.assert_cardinality(take))
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), records)

    return tf.data.Dataset.from_tensor_slices(order_F).interleave(
        read,
        cycle_length=cycle,
        num_parallel_calls=cycle,
        deterministic=True,
    )


def _parse(examples: tf.data.Dataset, data: TfdsData, share: Share) -> tf.data.Dataset:
    """Chunks, from (local position, (record number, serialized example))."""

    def chunk(local_N: tf.Tensor, numbered: tuple[tf.Tensor, tf.Tensor]) -> Chunk:
        record_N, serialized_N = numbered
        data_N, label_N = _parse_examples(serialized_N, data)
        return {"bytes": data_N, "label": label_N, "record": record_N, "position": share.positions(local_N)}

    return examples.batch(CHUNK).map(chunk, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _parse_examples(serialized_N: tf.Tensor, data: TfdsData) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded images, labels), the labels NxK padded with -1 where an image may have several."""
    image = tf.io.FixedLenFeature([], tf.string)
    if not data.has_several_labels:
        label = tf.io.FixedLenFeature([], tf.int64)
        parsed = tf.io.parse_example(serialized_N, {data.image_key: image, data.label_key: label})
        return parsed[data.image_key], tf.cast(parsed[data.label_key], tf.int32)
    labels = tf.io.RaggedFeature(tf.int64)
    parsed = tf.io.parse_example(serialized_N, {data.image_key: image, data.label_key: labels})
    label_NxK = parsed[data.label_key]
    is_short = tf.reduce_all(label_NxK.row_lengths() <= MAX_LABELS)
    tf.debugging.Assert(is_short, [f"an image of {data.name} has more than {MAX_LABELS} labels"])
    label_NxK = label_NxK.to_tensor(default_value=-1, shape=[None, MAX_LABELS])
    return parsed[data.image_key], tf.cast(label_NxK, tf.int32)
