"""The loader on tf.data: TFDS data sets and image folders, decoded on the host. Imports TensorFlow.

Batches are a pure function of (seed, step). Resuming costs nothing for sources with random access. For
TFRecord files, the examples of the current epoch are read again, but not decoded.
"""

import contextlib
import re
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from vit_registers.config import Data
from vit_registers.data import batch as batch_lib
from vit_registers.data import order, streams
from vit_registers.data.batch import IMAGE, LABEL, TOKENS, Batch, Training, View, default_training
from vit_registers.data.broken import BrokenImages
from vit_registers.data.caption_tokens import CaptionTokens, open_texts
from vit_registers.data.example_order import example_order
from vit_registers.data.ops import catalog
from vit_registers.data.ops.pixel_ops import fold_in
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.base import MAX_LABELS, usable_labels
from vit_registers.data.sources.catalog import open_data_source
from vit_registers.data.sources.tf_readers import CHUNK
from vit_registers.data.streams import Chunk, Share
from vit_registers.errors import ConfigError, DataError

_OK, _BROKEN, _WRONG_SIZE = 0, 1, 2  # status of an image

# What TensorFlow adds to the reason for an error.
_ADDED = re.compile(r"\{\{[^}]*\}\}|Error in user-defined function.* iterator: \S+:|\[Op:.*| name: $")


class TfdataLoader:
    """The Loader (loaders.py) for data.loader='tfdata'."""

    def __init__(
        self,
        data: Data,
        target: Target,
        *,
        seed: int,
        groups: int,
        training: Training | None = None,
        needs_labels: bool = True,
    ) -> None:
        """Opens the data set; reads no image. Raises DataError or ConfigError, one line each."""
        self._needs_labels = needs_labels
        tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX
        self._data, self._target, self._seed, self._groups = data, target, seed, groups
        evaluated = {IMAGE: View(target.height, target.width, data.eval_ops, "data.eval_ops")}
        trained = default_training(data, target) if training is None else training
        self._views = {"train": trained.views, "eval": evaluated}
        self._targets = trained.targets
        self._process = {
            kind: catalog.compose_views(views, target.channels) for kind, views in self._views.items()
        }
        self._broken = BrokenImages(data)
        self._open: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()
        # TensorFlow's threads call Python to read array_record files: if left running, they block its exit
        weakref.finalize(self, _close, self._open)
        self._source = open_data_source(data, target.channels, self._broken, needs_labels=needs_labels)
        self._texts = open_texts(self._source, data, trained.texts, seed=seed, broken=self._broken)
        self._image_readers: dict[str, Callable[[int], bytes]] = {}  # by split, for broken images
        self.name = data.name
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)

    @property
    def broken_names(self) -> frozenset[str]:
        return self._broken.names

    def num_examples(self, split: str) -> int:
        return self._source.num_examples(split)

    @property
    def texts(self) -> CaptionTokens | None:
        return self._texts

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        return self._source.captions(split)

    @property
    def has_random_access(self) -> bool:
        return self._source.tfrecords is None

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        batch_lib.check_divides(self._data.batch_size, sharding, where="data.batch_size")
        index, count = batch_lib.own_part(sharding)
        batches = self.host_train_batches(start_step, process_index=index, process_count=count)
        return (
            batch_lib.with_targets(
                batch_lib.to_device(batch, sharding), self._targets, step, self._data.batch_size, sharding
            )
            for step, batch in enumerate(batches, start_step)
        )

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        batch_lib.check_divides(self._data.eval_batch_size, sharding, where="data.eval_batch_size")
        index, count = batch_lib.own_part(sharding)
        batches = self.host_eval_batches(split, process_index=index, process_count=count)
        return (batch_lib.to_device(batch, sharding) for batch in batches)

    def host_train_batches(
        self, start_step: int, *, process_index: int, process_count: int
    ) -> Generator[Batch]:
        """The shares of one process of the training batches, as numpy."""
        data = self._data
        if self._source.has_several_labels:
            what = f"data.name={data.name!r} has several labels for an image"
            raise ConfigError(f"{what}: it is for evaluation only")
        local_size = order.share(data.batch_size, process_count, where="data.batch_size")
        split, texts = data.train_split, self._texts
        training = example_order(
            data, self._source, None if texts is None else texts.wanted, seed=self._seed, groups=self._groups
        )
        chunks = streams.train_stream(
            self._source,
            split,
            Share(data.batch_size, process_index, process_count),
            training,
            start_step=start_step,
            buffer=data.shuffle_buffer,
        )
        batches = self._batches(chunks, local_size, split=split, kind="train", start_step=start_step)
        self._open.add(batches)
        return batches

    def host_eval_batches(self, split: str, *, process_index: int, process_count: int) -> Iterator[Batch]:
        """The shares of one process of the evaluation batches, as numpy; the number is the same for all."""
        size = self._data.eval_batch_size
        local_size = order.share(size, process_count, where="data.eval_batch_size")
        share = Share(size, process_index, process_count)
        number = streams.num_eval_batches(self._source, split, share)
        chunks = streams.eval_stream(self._source, split, share)
        batches = self._batches(chunks, local_size, split=split, kind="eval")
        self._open.add(batches)
        return self._padded(batches, number, local_size)

    def _padded(self, batches: Iterator[Batch], number: int, local_size: int) -> Iterator[Batch]:
        label = np.zeros((0, MAX_LABELS) if self._source.has_several_labels else 0, np.int32)
        empty = batch_lib.labelled_batch(np.zeros((0, *self._target), np.uint8), label, np.zeros(0, bool))
        for _ in range(number):
            yield batch_lib.pad_batch(next(batches, empty), local_size)

    def _batches(
        self, chunks: tf.data.Dataset, local_size: int, *, split: str, kind: str, start_step: int = 0
    ) -> Generator[Batch]:
        targets = {
            name: Target(view.height, view.width, self._target.channels)
            for name, view in self._views[kind].items()
        }
        process_all = _guarded(self._process[kind], targets, self._seed)
        decoded = chunks.map(process_all, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        options = tf.data.Options()
        options.deterministic = True
        options.threading.max_intra_op_parallelism = 1  # parallel over images, not within one
        dataset = decoded.rebatch(local_size).prefetch(2).with_options(options)
        try:
            columns: Any
            for step, columns in enumerate(dataset.as_numpy_iterator(), start_step):
                batch = self._to_batch(columns, split, kind)
                has_texts = kind == "train" and self._texts is not None
                yield self._with_tokens(batch, step, columns["record"]) if has_texts else batch
        except tf.errors.OpError as error:
            raise DataError(
                f"reading split '{split}' of {self._data.name} failed: {_reason(error)}; see that all "
                "files of data.data_dir are there and whole, or prepare the data set again"
            ) from None

    def _to_batch(self, columns: dict[str, Any], split: str, kind: str) -> Batch:
        status_B = columns["status"]
        for i in np.flatnonzero(status_B):
            record = int(columns["record"][i])
            if status_B[i] == _WRONG_SIZE:
                raise DataError(self._wrong_size(columns["size"], int(i), split, record, kind))
            self._report_broken(split, record)
        label_B = columns["label"]
        if not self._source.has_several_labels:
            records = columns["record"]
            label_B = usable_labels(self._source, split, records, label_B, needs_labels=self._needs_labels)
        return Batch(columns["views"], {LABEL: label_B}, status_B == _OK)

    def _with_tokens(self, batch: Batch, step: int, record_B: np.ndarray) -> Batch:
        assert self._texts is not None
        tokens_BxL, has_text_B = self._texts(step, record_B, batch.targets[LABEL])
        targets = {**batch.targets, TOKENS: tokens_BxL}
        return batch._replace(targets=targets, mask_B=batch.mask_B & has_text_B)

    def _wrong_size(
        self, sizes: dict[str, np.ndarray], place: int, split: str, record: int, kind: str
    ) -> str:
        for name, view in self._views[kind].items():
            height, width = sizes[name][place]
            if (height, width) != (view.height, view.width):
                break
        return (
            f"{self._source.describe(split, record)} is {height} x {width} after {view.setting}, instead of "
            f"the required {view.height} x {view.width}: resize it there"
        )

    def _report_broken(self, split: str, record: int) -> None:
        """Reports an image that TensorFlow could not decode, with PIL's reason if it can be read again."""
        if self._source.tfrecords is None:
            if split not in self._image_readers:
                self._image_readers[split] = self._source.image_reader(split)
            read = self._image_readers[split]
            if self._broken.decode(self._source, split, record, read, channels=3) is None:
                return
        self._broken.report(self._source.describe(split, record))


def _reason(error: tf.errors.OpError) -> str:
    return " ".join(_ADDED.sub("", str(error).splitlines()[0]).split())


def _close(generators: weakref.WeakSet[Generator[Batch]]) -> None:
    for generator in list(generators):
        with contextlib.suppress(ValueError):  # the generator is running in another thread
            generator.close()


def _fitted(image_HxWxC: tf.Tensor, fits: tf.Tensor, target: Target) -> tf.Tensor:
    blank_HxWxC = tf.zeros(target, tf.uint8)
    return tf.ensure_shape(tf.cond(fits, lambda: image_HxWxC, lambda: blank_HxWxC), target)


def _guarded(
    process: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    targets: Mapping[str, Target],
    seed: int,
) -> Callable[[Chunk], dict[str, Any]]:
    """A function from encoded to decoded chunks, in which an image that fails is zero and has a status.

    tf.data ignores errors only of a Dataset's elements, so a Dataset processes each chunk. A Dataset for each
    image would serialize the decoding.
    """
    blank = {name: tf.zeros(target, tf.uint8) for name, target in targets.items()}

    def one(place: tf.Tensor, data: tf.Tensor, position: tf.Tensor) -> dict[str, Any]:
        made = process(data, fold_in(tf.constant([seed, 0], tf.int64), position))
        sizes = {name: tf.shape(image_HxWxC)[:2] for name, image_HxWxC in made.items()}
        fits = {name: tf.reduce_all(sizes[name] == targets[name][:2]) for name in made}
        views = {name: _fitted(image_HxWxC, fits[name], targets[name]) for name, image_HxWxC in made.items()}
        status = tf.where(tf.reduce_all([*fits.values()]), _OK, _WRONG_SIZE)
        return {"place": place, "views": views, "size": sizes, "status": status}

    none = {name: tf.zeros([2], tf.int32) for name in targets}
    broken = {"place": -1, "views": blank, "size": none, "status": _BROKEN}

    def apply(chunk: Chunk) -> dict[str, Any]:
        number = tf.size(chunk["record"])
        examples = tf.data.Dataset.from_tensor_slices((tf.range(number), chunk["bytes"], chunk["position"]))
        examples = examples.map(one).ignore_errors().concatenate(tf.data.Dataset.from_tensors(broken))
        found = examples.batch(CHUNK + 1).get_single_element()
        place_N = found.pop("place")
        num_good = tf.size(place_N) - 1  # the blank comes last
        index_N = tf.tensor_scatter_nd_update(
            tf.fill([number], num_good), place_N[:-1, None], tf.range(num_good)
        )
        complete = tf.cond(
            num_good == number,
            lambda: tf.nest.map_structure(lambda value: value[:-1], found),
            lambda: tf.nest.map_structure(lambda value: tf.gather(value, index_N), found),
        )
        return {**complete, "label": chunk["label"], "record": chunk["record"]}

    return apply
