"""Readers of encoded images and labels by record, as functions of a tf.data graph. Imports TensorFlow."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vit_registers.data.sources.base import MAX_LABELS

TfReader = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]  # record_N -> encoded_N, label_N or label_NxK

CHUNK = 32  # examples that are read at a time, at most


def by_record(read: Callable[[int], bytes], label_N: np.ndarray) -> TfReader:
    """The reader of any source: `read` gives the encoded image of a record.

    An image whose `read` raises OSError becomes empty bytes, which is a broken image.
    """
    labels = tf.constant(label_N, tf.int32)

    def read_or_nothing(record: int) -> bytes:
        try:
            return read(int(record))
        except OSError:
            return b""

    def read_all(record_N: np.ndarray) -> np.ndarray:
        return np.array([read_or_nothing(record) for record in record_N], dtype=object)

    def apply(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded_N = tf.numpy_function(read_all, [record_N], tf.string)
        encoded_N.set_shape([None])
        return encoded_N, tf.gather(labels, record_N)

    return apply


def from_files(root: Path, files: Sequence[str], label_N: np.ndarray) -> TfReader:
    """The reader of images in files of their own, by TensorFlow, which needs no Python while it reads."""
    folder = os.fsencode(root)
    # bytes: any name is valid
    path_N = tf.constant([os.path.join(folder, os.fsencode(file)) for file in files])
    labels = tf.constant(label_N, tf.int32)

    def apply(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _read_files(tf.gather(path_N, record_N)), tf.gather(labels, record_N)

    return apply


def _read_files(path_N: tf.Tensor) -> tf.Tensor:
    """The contents of the files; empty bytes, as for a broken image, for a file that cannot be read.

    Errors are caught by datasets, as in tfdata.py. One dataset for each file is slower than one for all, so
    files are read one by one only if reading them together fails.
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


def from_serialized(
    records: Sequence[bytes], parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
) -> TfReader:
    """The reader of serialized examples with random access, such as those of array_record files."""

    def look_up(record_N: np.ndarray) -> np.ndarray:
        # not __getitems__, which starts new threads for every call: chunks are read in parallel already
        found = [records[i] for i in record_N]
        if not all(found):  # array_record returns empty bytes where a part of a file is damaged
            raise ValueError(f"record {record_N[found.index(b'')]} is empty")
        return np.array(found, dtype=object)

    def apply(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        serialized_N = tf.numpy_function(look_up, [record_N], tf.string)
        serialized_N.set_shape([None])
        return parse(serialized_N)

    return apply


def parse_examples(
    serialized_N: tf.Tensor, *, image_key: str, label_key: str, has_several_labels: bool, name: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded_N, label_N) of serialized tf.train.Examples of the data set `name`.

    With several labels they are label_NxK with K = MAX_LABELS, padded with -1.
    """
    image = tf.io.FixedLenFeature([], tf.string)
    if not has_several_labels:
        label = tf.io.FixedLenFeature([], tf.int64)
        parsed: Any = tf.io.parse_example(serialized_N, {image_key: image, label_key: label})
        return parsed[image_key], tf.cast(parsed[label_key], tf.int32)
    labels = tf.io.RaggedFeature(tf.int64)
    parsed: Any = tf.io.parse_example(serialized_N, {image_key: image, label_key: labels})
    label_NxK = parsed[label_key]
    is_short = tf.reduce_all(label_NxK.row_lengths() <= MAX_LABELS)
    tf.debugging.Assert(is_short, [f"an image of {name} has more than {MAX_LABELS} labels"])
    label_NxK = label_NxK.to_tensor(default_value=-1, shape=[None, MAX_LABELS])
    return parsed[image_key], tf.cast(label_NxK, tf.int32)
