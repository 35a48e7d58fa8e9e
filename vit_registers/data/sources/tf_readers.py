"""Readers of encoded images and labels by record, as functions of a tf.data graph. Imports TensorFlow."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vit_registers.data.sources.base import MAX_LABELS, not_empty

TfReader = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]  # record_N -> encoded_N, label_N or label_NxK

CHUNK = 32  # examples that are read at a time, at most


def by_record(read: Callable[[int], bytes], label_N: np.ndarray) -> TfReader:
    """The reader of any source; an image whose `read` raises OSError becomes empty bytes, a broken image."""
    labels = tf.constant(label_N, tf.int32)

    def read_or_nothing(record: int) -> bytes:
        try:
            return read(record)
        except OSError:
            return b""

    def apply(record_N: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _in_python(_each(read_or_nothing), record_N), tf.gather(labels, record_N)

    return apply


def _each(read: Callable[[int], bytes]) -> Callable[[list[int]], list[bytes]]:
    return lambda records: [read(record) for record in records]


def _in_python(read_all: Callable[[list[int]], list[bytes]], record_N: tf.Tensor) -> tf.Tensor:
    def as_array(record_N: np.ndarray) -> np.ndarray:
        return np.array(read_all(record_N.tolist()), dtype=object)

    data_N = tf.numpy_function(as_array, [record_N], tf.string)
    data_N.set_shape([None])
    return data_N


def from_files(root: Path, files: Sequence[str], label_N: np.ndarray) -> TfReader:
    """The reader of images in separate files, by TensorFlow, without Python."""
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
    records: Any, parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]], *, is_remote: bool
) -> TfReader:
    """The reader of serialized examples with random access, such as those of array_record files.

    `is_remote`: they are in an object store.
    """

    # TensorFlow reads as many chunks in parallel as there are CPU cores. That is enough for a disk. A request
    # to a store takes tens of milliseconds, so the records of a chunk are read in parallel too, in threads
    # that __getitems__ starts for every call.
    def read_together(wanted: list[int]) -> list[bytes]:
        found = dict(zip(wanted, records.__getitems__(wanted), strict=True))
        return [not_empty(found, record) for record in wanted]

    read_all = read_together if is_remote else _each(lambda record: not_empty(records, record))
    return lambda record_N: parse(_in_python(read_all, record_N))


def parse_examples(
    serialized_N: tf.Tensor, *, image_key: str, label_key: str | None, has_several_labels: bool, name: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """(encoded_N, label_N) of serialized tf.train.Examples of the data set `name`.

    With several labels they are label_NxK with K = MAX_LABELS, padded with -1. Without a key they are -1.
    """
    if label_key is None:
        image = {image_key: tf.io.FixedLenFeature([], tf.string)}
        encoded_N: Any = tf.io.parse_example(serialized_N, image)
        return encoded_N[image_key], tf.fill(tf.shape(serialized_N), tf.constant(-1, tf.int32))
    label = tf.io.RaggedFeature(tf.int64) if has_several_labels else tf.io.FixedLenFeature([], tf.int64)
    features = {image_key: tf.io.FixedLenFeature([], tf.string), label_key: label}
    parsed: Any = tf.io.parse_example(serialized_N, features)
    label = parsed[label_key]
    if has_several_labels:
        is_short = tf.reduce_all(label.row_lengths() <= MAX_LABELS)
        tf.debugging.Assert(is_short, [f"an image of {name} has more than {MAX_LABELS} labels"])
        label = label.to_tensor(default_value=-1, shape=[None, MAX_LABELS])
    return parsed[image_key], tf.cast(label, tf.int32)
