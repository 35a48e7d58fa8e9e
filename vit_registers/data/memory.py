"""The loader for data sets that fit on the accelerator and are augmented there. No TensorFlow.

It has the order of the tf.data loader for random-access data (order.py), but other draws of augmentation.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Data
from vit_registers.data import order
from vit_registers.data.batch import IMAGE, Batch, check_divides, labelled_batch
from vit_registers.data.broken import BrokenImages
from vit_registers.data.ops import strings
from vit_registers.data.ops.on_device import MEMORY_OPS
from vit_registers.data.ops.pil_ops import resize_in_memory
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.base import DataSource
from vit_registers.data.sources.catalog import open_data_source
from vit_registers.errors import ConfigError, DataError

_SETTINGS = ("train_ops", "eval_ops")
_CROPS = ("random_crop", "central_crop")
_FOR_EVALUATION = ([], ["resize"], ["central_crop"])


class _Images(NamedTuple):
    """A split of N examples in memory; mask_N is False for images that could not be decoded, all zero."""

    image_NxHxWxC: np.ndarray | jax.Array  # uint8
    label_N: np.ndarray | jax.Array  # int32
    mask_N: np.ndarray | jax.Array  # bool


class MemoryLoader:
    """The Loader (loaders.py) for data.loader='memory'."""

    def __init__(self, data: Data, target: Target, *, seed: int, groups: int) -> None:
        """Opens the data set; reads no image. Raises DataError or ConfigError, one line each."""
        self._data, self._target, self._seed, self._groups = data, target, seed, groups
        self._ops = {name: _build(getattr(data, name), target, where=f"data.{name}") for name in _SETTINGS}
        if [name for name, _ in self._ops["eval_ops"]] not in _FOR_EVALUATION:
            raise ConfigError(
                f"data.eval_ops={data.eval_ops!r}: with data.loader='memory', it must be '', 'resize' or "
                "'central_crop'"
            )
        self._broken = BrokenImages(data)
        self._source = open_data_source(data, target.channels, self._broken)
        _check_source(self._source, data.name)
        self.name = data.name
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)
        self._steps: dict[tuple[str, jax.sharding.Sharding], Callable[..., Batch]] = {}
        self._resident: dict[tuple[str, bool, bool, jax.sharding.Sharding], _Images] = {}

    @property
    def num_broken(self) -> int:
        return self._broken.count

    def num_examples(self, split: str) -> int:
        return self._source.num_examples(split)

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches on the devices, from step `start_step` on; the same for any sharding."""
        data = self._data
        check_divides(data.batch_size, sharding, where="data.batch_size")
        images = self._images(data.train_split, sharding, setting="train_ops")
        take = self._step(sharding, setting="train_ops")
        training = order.training_order(data, len(images.label_N), seed=self._seed, groups=self._groups)

        def batch(step: int) -> Batch:
            position_B = step * data.batch_size + np.arange(data.batch_size)
            return take(images, training.records(position_B).astype(np.int32), np.uint32(step))

        return (batch(step) for step in itertools.count(start_step))

    def _step(self, sharding: jax.sharding.Sharding, *, setting: str) -> Callable[..., Batch]:
        if (setting, sharding) in self._steps:
            return self._steps[setting, sharding]
        ops, seed = [op for _, op in self._ops[setting]], self._seed

        def augment(images: _Images, record_B: jax.Array, step: jax.Array) -> Batch:
            batch = _gather(images, record_B)
            key = jax.random.fold_in(jax.random.key(seed), step)
            for place, op in enumerate(ops):
                image_BxHxWxC = op(batch.views[IMAGE], jax.random.fold_in(key, place))
                batch = batch._replace(views={IMAGE: image_BxHxWxC})
            return batch

        self._steps[setting, sharding] = jax.jit(augment, out_shardings=sharding)
        return self._steps[setting, sharding]

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches on the devices with each image of the split once, in order; the last is padded."""
        size = self._data.eval_batch_size
        check_divides(size, sharding, where="data.eval_batch_size")
        images = self._images(split, sharding, setting="eval_ops")
        take = self._step(sharding, setting="eval_ops")  # which draw nothing
        starts = range(0, len(images.label_N), size)
        return (take(images, np.arange(i, i + size, dtype=np.int32), np.uint32(0)) for i in starts)

    def _images(self, split: str, sharding: jax.sharding.Sharding, *, setting: str) -> _Images:
        names = [name for name, _ in self._ops[setting]]
        is_resized, is_cropped = "resize" in names, not set(names).isdisjoint(_CROPS)
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        key = (split, is_resized, is_cropped, sharding)
        if key not in self._resident:
            size = None if is_cropped and not is_resized else (self._target.height, self._target.width)
            images = self._load(split, size, is_resized=is_resized, setting=setting)
            self._resident[key] = jax.tree.map(lambda x: _replicate(x, sharding), images)
        return self._resident[key]

    def _load(self, split: str, size: tuple[int, int] | None, *, is_resized: bool, setting: str) -> _Images:
        """All images of the split, resized to the target by PIL's bilinear filter if `is_resized`.

        They must have `size`; if it is None, as they are cropped later, any size that is the same for all.
        Raises DataError for an image of another size, with the `setting` to change, and for one that cannot
        be read or decoded if data.on_broken says so.
        """
        source, target = self._source, self._target
        label_N, read = source.labels(split), source.image_reader(split)
        image_N: list[np.ndarray | None] = []
        for i in range(len(label_N)):
            image_HxWxC = self._broken.decode(source, split, i, read, channels=target.channels)
            if image_HxWxC is not None and is_resized:
                image_HxWxC = resize_in_memory(image_HxWxC, target)
            image_N.append(image_HxWxC)
            if image_HxWxC is None:
                continue
            height, width = image_HxWxC.shape[:2]
            size = size or (height, width)
            if (height, width) != size:
                raise DataError(
                    f"{source.describe(split, i)} is {height} x {width}, not {size[0]} x {size[1]}: begin "
                    f"data.{setting} with 'resize'"
                )
        blank_HxWxC = np.zeros((*(size or (target.height, target.width)), target.channels), np.uint8)
        image_NxHxWxC = np.stack([blank_HxWxC if image is None else image for image in image_N])
        return _Images(image_NxHxWxC, label_N, np.array([image is not None for image in image_N], bool))


def _check_source(source: DataSource, name: str) -> None:
    if source.tfrecords is not None:
        raise DataError(
            f"data.name='{name}' is prepared as TFRecord files, which data.loader='memory' cannot read: "
            "prepare it with vit_registers.prepare, or set data.loader='tfdata'"
        )
    if source.has_several_labels:
        raise DataError(f"data.name='{name}' has several labels for an image: set data.loader='tfdata'")


def _build(text: str, target: Target, *, where: str) -> list[tuple[str, Any]]:
    built = strings.build(text, MEMORY_OPS, target, where=where)
    if "resize" in [name for name, _ in built[1:]]:
        raise ConfigError(f"{where}={text!r}: with data.loader='memory', resize must come first")
    return built


def _replicate(x_N: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(x_N.shape, sharding, lambda index: x_N[index])


def _gather(images: _Images, record_B: jax.Array) -> Batch:
    """The examples `record_B`; records past the end are padding: zero, with mask False."""
    return labelled_batch(*(jnp.take(x, record_B, axis=0, mode="fill", fill_value=0) for x in images))
