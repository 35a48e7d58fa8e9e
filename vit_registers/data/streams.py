"""Encoded images and labels as tf.data streams, in training or evaluation order. Imports TensorFlow.

A stream yields chunks: dicts of `bytes`, `label`, `record` (index in the split) and `position` (global, see
order.py), each of shape [n] with n <= CHUNK. It yields chunks instead of single examples because the guard
against broken images runs once for each chunk (tfdata.py).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from vit_registers.data.order import Order
from vit_registers.data.sources.base import DataSource, RecordFile, TFRecordSource
from vit_registers.data.sources.tf_readers import CHUNK
from vit_registers.errors import ConfigError, DataError

_PARALLEL_READS = 16
_MAX = np.iinfo(np.int64).max

Chunk = dict[str, tf.Tensor]


class Share(NamedTuple):
    """This process's part of the global batches."""

    batch_size: int  # global
    process_index: int
    process_count: int

    @property
    def local_size(self) -> int:
        """The number of examples of a batch that this process has."""
        return self.batch_size // self.process_count

    def positions(self, local_N: tf.Tensor) -> tf.Tensor:
        """The global positions of this process's local positions."""
        place_N = tf.math.floormod(local_N, self.local_size)
        return local_N // self.local_size * self.batch_size + self.process_index * self.local_size + place_N

    def num_positions(self, num_examples: int) -> int:
        """The number of this process's positions in [0, num_examples)."""
        full_batches, rest = divmod(num_examples, self.batch_size)
        mine = min(max(rest - self.process_index * self.local_size, 0), self.local_size)
        return full_batches * self.local_size + mine


def train_stream(
    source: DataSource, split: str, share: Share, training: Order, *, start_step: int, buffer: int
) -> tf.data.Dataset:
    """The endless stream of chunks from the first example of step `start_step` on.

    TFRecord files are shuffled by file and through `buffer` examples. Raises ConfigError if `training` asks
    for an order that they cannot be read in.
    """
    start = start_step * share.local_size
    tfrecords = source.tfrecords
    if tfrecords is None:
        return _by_record(source, split, share, tf.data.Dataset.range(start, _MAX), training.records)
    if training.repeats > 1 or training.drop_last:
        raise ConfigError(
            f"data.repeats and data.drop_last require random access; {tfrecords.name} is of TFRecord files: "
            "prepare it again with vit_registers.prepare, which writes array_record"
        )
    return _train_files(tfrecords, split, share, start=start, seed=training.seed, shuffle_buffer=buffer)


def eval_stream(source: DataSource, split: str, share: Share) -> tf.data.Dataset:
    """The stream of this process's share of the split, in order, each example once."""
    tfrecords = source.tfrecords
    if tfrecords is not None:
        files = _own_files(tfrecords, split, share)
        local = tf.data.Dataset.range(sum(file.take for file in files))
        examples = tf.data.Dataset.zip(local, _read_files(files, tf.range(len(files)), cycle=1))
        return _parse(examples, tfrecords, share)
    local = tf.data.Dataset.range(share.num_positions(source.num_examples(split)))
    return _by_record(source, split, share, local, lambda position_N: position_N)


def num_eval_batches(source: DataSource, split: str, share: Share) -> int:
    """The number of batches that every process yields: that of the process with the most examples."""
    number = source.num_examples(split)
    if source.tfrecords is None:
        return math.ceil(number / share.batch_size)
    largest_part = math.ceil(number / share.process_count)
    return math.ceil(largest_part / share.local_size)


# --- random access -----------------------------------------------------------------------------


Records = Callable[[np.ndarray], np.ndarray]  # from global positions


def _by_record(
    source: DataSource, split: str, share: Share, local: tf.data.Dataset, records: Records
) -> tf.data.Dataset:
    read = source.tf_reader(split)

    def chunk(local_N: tf.Tensor) -> Chunk:
        position_N = share.positions(local_N)
        record_N = tf.numpy_function(records, [position_N], tf.int64)
        record_N.set_shape([None])
        data_N, label_N = read(record_N)
        return {"bytes": data_N, "label": label_N, "record": record_N, "position": position_N}

    return local.batch(CHUNK).map(chunk, num_parallel_calls=_PARALLEL_READS, deterministic=True)


# --- in order: TFRecord files ------------------------------------------------------------------


def _train_files(
    source: TFRecordSource, split: str, share: Share, *, start: int, seed: int, shuffle_buffer: int
) -> tf.data.Dataset:
    files = _own_files(source, split, share)
    number = sum(file.take for file in files)
    if number == 0:
        raise DataError(f"split '{split}' of {source.name} has fewer records than there are processes")
    first_epoch, skipped = divmod(start, number)

    def epoch_examples(epoch: tf.Tensor) -> tf.data.Dataset:
        epoch_seed = tf.stack([tf.constant(seed, tf.int64), epoch])
        order_F = tf.random.experimental.stateless_shuffle(  # pyright: ignore[reportAttributeAccessIssue]
            tf.range(len(files)), epoch_seed
        )
        no_limit: Any = None  # all integers
        buffer_seed: Any = tf.random.stateless_uniform([], epoch_seed, no_limit, no_limit, tf.int64)
        examples = _read_files(files, order_F, cycle=_PARALLEL_READS)
        examples = examples.shuffle(min(shuffle_buffer, number), seed=buffer_seed)
        examples = tf.data.Dataset.zip(tf.data.Dataset.range(epoch * number, (epoch + 1) * number), examples)
        # serialized examples are skipped here, before any is decoded
        return examples.skip(tf.where(epoch == first_epoch, tf.constant(skipped, tf.int64), 0))

    return _parse(tf.data.Dataset.range(first_epoch, _MAX).flat_map(epoch_examples), source, share)


def _own_files(source: TFRecordSource, split: str, share: Share) -> list[RecordFile]:
    """The files of this process's part of the split; the sizes of parts differ by at most one record."""
    number, index, count = source.num_examples(split), share.process_index, share.process_count
    return source.record_files(split, start=number * index // count, stop=number * (index + 1) // count)


def _read_files(files: list[RecordFile], order_F: tf.Tensor, *, cycle: int) -> tf.data.Dataset:
    """(record, serialized example) of all files in the given order, `cycle` of them interleaved."""
    path_F = tf.constant([file.path for file in files], tf.string)
    cycle = max(min(cycle, len(files)), 1)
    skip_F, take_F, first_F = (tf.constant([file[i] for file in files], tf.int64) for i in (1, 2, 3))

    def read(index: tf.Tensor) -> tf.data.Dataset:
        first, take = first_F[index], take_F[index]
        records = tf.data.TFRecordDataset(path_F[index]).skip(skip_F[index]).take(take)
        # otherwise, a truncated file would end early without an error
        records = records.apply(tf.data.experimental.assert_cardinality(take))
        return tf.data.Dataset.zip(tf.data.Dataset.range(first, first + take), records)

    return tf.data.Dataset.from_tensor_slices(order_F).interleave(
        read, cycle_length=cycle, num_parallel_calls=cycle, deterministic=True
    )


def _parse(examples: tf.data.Dataset, source: TFRecordSource, share: Share) -> tf.data.Dataset:
    def chunk(local_N: tf.Tensor, numbered: tuple[tf.Tensor, tf.Tensor]) -> Chunk:
        record_N, serialized_N = numbered
        data_N, label_N = source.parse(serialized_N)
        return {"bytes": data_N, "label": label_N, "record": record_N, "position": share.positions(local_N)}

    return examples.batch(CHUNK).map(chunk, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
