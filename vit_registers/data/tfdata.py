"""The loader on tf.data: TFDS data sets and image folders, decoded on the host. Imports TensorFlow.

Batches are a pure function of (seed, step). Resuming costs nothing for array_record files and folders;
for TFRecord files the examples of the epoch so far are read again, not decoded.
"""

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tensorflow as tf

from vit_registers.config import Config, image_size
from vit_registers.data import batch as batch_lib
from vit_registers.data import order, streams
from vit_registers.data.batch import Batch
from vit_registers.data.broken import BrokenImages
from vit_registers.data.ops import catalog
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.folder import FOLDERS, Folder, open_folder
from vit_registers.data.sources.tfds_prepared import MAX_LABELS, TfdsData, open_tfds
from vit_registers.data.streams import CHUNK, Chunk, Share
from vit_registers.errors import ConfigError, DataError

_OK, _BROKEN, _WRONG_SIZE = 0, 1, 2  # status of an image

# What TensorFlow puts around the reason for an error.
_NOT_THE_REASON = re.compile(
    r"\{\{[^}]*\}\}|Error in user-defined function.* iterator: \S+:|\[Op:.*| name: $"
)


class TfdataLoader:
    """The Loader (loaders.py) for data.loader='tfdata'."""

    def __init__(self, config: Config) -> None:
        """Opens the data set; reads no image. Raises DataError or ConfigError, one line each."""
        tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX
        self._config = config
        self._target = Target(*image_size(config), config.model.channels)
        self._train_ops = catalog.compose(config.data.train_ops, self._target, where="data.train_ops")
        self._eval_ops = catalog.compose(config.data.eval_ops, self._target, where="data.eval_ops")
        self._broken = BrokenImages(config)
        self._open: weakref.WeakSet[Iterator[Batch]] = weakref.WeakSet()
        # TensorFlow's threads call Python to read array_record files: left running, they would hang its exit.
        weakref.finalize(self, _close, self._open)
        self._source = open_folder(config, self._broken) if config.data.name in FOLDERS else open_tfds(config)
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)
        self.has_several_labels = isinstance(self._source, TfdsData) and self._source.has_several_labels

    @property
    def num_broken(self) -> int:
        """How many different images this process has left out so far."""
        return self._broken.count

    def num_examples(self, split: str) -> int:
        """How many examples the split has, over all processes."""
        return self._source.num_examples(split)

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches on the devices, from step `start_step` on."""
        batch_lib.check_divides(self._config.data.batch_size, sharding, where="data.batch_size")
        batches = self.host_train_batches(
            start_step, process_index=jax.process_index(), process_count=jax.process_count()
        )
        return (batch_lib.to_device(batch, sharding) for batch in batches)

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches on the devices with each image of the split once; the last is padded."""
        batch_lib.check_divides(self._config.data.eval_batch_size, sharding, where="data.eval_batch_size")
        batches = self.host_eval_batches(
            split, process_index=jax.process_index(), process_count=jax.process_count()
        )
        return (batch_lib.to_device(batch, sharding) for batch in batches)

    def host_train_batches(
        self, start_step: int, *, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """One process's shares of the training batches, as numpy."""
        data = self._config.data
        if self.has_several_labels:
            raise ConfigError(
                f"data.name={data.name!r} has several labels for an image: it is for evaluation"
            )
        local_size = order.share(data.batch_size, process_count, where="data.batch_size")
        chunks = streams.train_stream(
            self._source,
            data.train_split,
            Share(data.batch_size, process_index, process_count),
            order.training_order(self._config, self.num_examples(data.train_split)),
            start_step=start_step,
            buffer=data.shuffle_buffer,
        )
        batches = self._batches(
            chunks, self._train_ops, local_size, split=data.train_split, setting="train_ops"
        )
        self._open.add(batches)
        return batches

    def host_eval_batches(self, split: str, *, process_index: int, process_count: int) -> Iterator[Batch]:
        """One process's shares of the evaluation batches, as numpy; every process yields as many."""
        size = self._config.data.eval_batch_size
        local_size = order.share(size, process_count, where="data.eval_batch_size")
        share = Share(size, process_index, process_count)
        number = streams.num_eval_batches(self._source, split, share)
        chunks = streams.eval_stream(self._source, split, share)
        batches = self._batches(chunks, self._eval_ops, local_size, split=split, setting="eval_ops")
        self._open.add(batches)
        return self._padded(batches, number, local_size)

    def _padded(self, batches: Iterator[Batch], number: int, local_size: int) -> Iterator[Batch]:
        label = np.zeros((0, MAX_LABELS) if self.has_several_labels else 0, np.int32)
        empty = batch_lib.labelled_batch(np.zeros((0, *self._target), np.uint8), label, np.zeros(0, bool))
        for _ in range(number):
            yield batch_lib.pad_batch(next(batches, empty), local_size)

    def _batches(
        self,
        chunks: tf.data.Dataset,
        process: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        local_size: int,
        *,
        split: str,
        setting: str,
    ) -> Iterator[Batch]:
        decoded = chunks.map(
            _guarded(process, self._target, self._config.run.seed),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        options = tf.data.Options()
        options.deterministic = True
        options.threading.max_intra_op_parallelism = 1  # images are parallel, not the work within one
        dataset = decoded.rebatch(local_size).prefetch(2).with_options(options)
        try:
            for columns in dataset.as_numpy_iterator():
                yield self._to_batch(columns, split, setting)
        except tf.errors.OpError as error:
            raise DataError(
                f"reading split '{split}' of {self._config.data.name} failed: {_reason(error)}; see that all "
                "files of data.data_dir are there and whole, or prepare the data set again"
            ) from None

    def _to_batch(self, columns: dict[str, np.ndarray], split: str, setting: str) -> Batch:
        status_B = columns["status"]
        for i in np.flatnonzero(status_B):
            record = int(columns["record"][i])
            name = self._source.describe(split, record)
            if status_B[i] == _WRONG_SIZE:
                height, width = columns["size"][i]
                raise DataError(
                    f"{name} is {height} x {width} after data.{setting}, smaller or larger than the "
                    f"{self._target.height} x {self._target.width} asked for: resize it there"
                )
            if isinstance(self._source, Folder):
                self._source.report(split, record, self._broken)
            else:
                self._broken.report(name)
        if isinstance(self._source, TfdsData) and not self.has_several_labels:
            label_B = columns["label"]
            for i in np.flatnonzero((label_B < 0) | (label_B >= self.num_classes))[:1]:
                self._source.check_label(int(label_B[i]), split, int(columns["record"][i]))
        return batch_lib.labelled_batch(columns["image"], columns["label"], status_B == _OK)


def _reason(error: tf.errors.OpError) -> str:
    """What an error of TensorFlow says, in one line."""
    return " ".join(_NOT_THE_REASON.sub("", str(error).splitlines()[0]).split())


def _close(generators: weakref.WeakSet[Iterator[Batch]]) -> None:
    for generator in list(generators):
        with contextlib.suppress(ValueError):  # it is running in another thread
            generator.close()


def _guarded(
    process: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], target: Target, seed: int
) -> Callable[[Chunk], Chunk]:
    """A function from encoded chunks to decoded ones, in which an image that fails is zero and has a status.

    tf.data drops what raises, but only from a Dataset; so each chunk is run through one of its own.
    Doing so for single images would serialize the decoding.
    """
    blank_HxWxC = tf.zeros(target, tf.uint8)

    def one(place: tf.Tensor, data: tf.Tensor, position: tf.Tensor) -> Chunk:
        image_HxWxC = process(
            data, tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int64), position)
        )
        size = tf.shape(image_HxWxC)[:2]
        fits = tf.reduce_all(size == [target.height, target.width])
        image_HxWxC = tf.ensure_shape(tf.cond(fits, lambda: image_HxWxC, lambda: blank_HxWxC), target)
        return {
            "place": place,
            "image": image_HxWxC,
            "size": size,
            "status": tf.where(fits, _OK, _WRONG_SIZE),
        }

    blank = {"place": -1, "image": blank_HxWxC, "size": tf.zeros([2], tf.int32), "status": _BROKEN}

    def apply(chunk: Chunk) -> Chunk:
        number = tf.size(chunk["record"])
        examples = tf.data.Dataset.from_tensor_slices((tf.range(number), chunk["bytes"], chunk["position"]))
        examples = examples.map(one).ignore_errors().concatenate(tf.data.Dataset.from_tensors(blank))
        found = examples.batch(CHUNK + 1).get_single_element()
        place_N = found.pop("place")
        num_good = tf.size(place_N) - 1  # the blank comes last
        index_N = tf.tensor_scatter_nd_update(
            tf.fill([number], num_good), place_N[:-1, None], tf.range(num_good)
        )
        complete = tf.cond(
            num_good == number,
            lambda: {key: value[:-1] for key, value in found.items()},
            lambda: {key: tf.gather(value, index_N) for key, value in found.items()},
        )
        return {**complete, "label": chunk["label"], "record": chunk["record"]}

    return apply
