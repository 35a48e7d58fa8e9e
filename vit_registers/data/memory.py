"""The loader for data sets that fit on the accelerator and are augmented there. No TensorFlow.

It has the order of the tf.data loader for random-access data (order.py), but other draws of augmentation.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Data
from vit_registers.data.batch import (
    IMAGE,
    TOKENS,
    Batch,
    Training,
    View,
    check_divides,
    default_training,
    labelled_batch,
    with_targets,
)
from vit_registers.data.broken import BrokenImages
from vit_registers.data.caption_tokens import CaptionTokens, open_texts
from vit_registers.data.example_order import example_order
from vit_registers.data.ops import strings
from vit_registers.data.ops.on_device import MEMORY_OPS, Resize
from vit_registers.data.ops.pil_ops import resize_in_memory
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.base import DataSource, usable_labels
from vit_registers.data.sources.catalog import open_data_source
from vit_registers.errors import ConfigError, DataError

_CROPS = ("random_crop", "central_crop", "random_resized_crop")
_FOR_EVALUATION = ([], ["resize"], ["central_crop"])


_Size = tuple[int, int] | None  # height, width; None: that of the images


class _Images(NamedTuple):
    """A split of N examples in memory; mask_N is False for images that could not be decoded, all zero."""

    image_NxHxWxC: np.ndarray | jax.Array  # uint8
    label_N: np.ndarray | jax.Array  # int32
    mask_N: np.ndarray | jax.Array  # bool


class MemoryLoader:
    """The Loader (loaders.py) for data.loader='memory'."""

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
        self._data, self._target, self._seed, self._groups = data, target, seed, groups
        evaluated = {IMAGE: View(target.height, target.width, data.eval_ops, "data.eval_ops")}
        trained = default_training(data, target) if training is None else training
        self._views = {"train": trained.views, "eval": evaluated}
        self._targets = trained.targets
        self._ops = {kind: self._build(views) for kind, views in self._views.items()}
        if [name for name, _ in self._ops["eval"][IMAGE]] not in _FOR_EVALUATION:
            raise ConfigError(
                f"data.eval_ops={data.eval_ops!r}: with data.loader='memory', it must be '', 'resize' or "
                "'central_crop'"
            )
        self._broken = BrokenImages(data)
        self._source = open_data_source(data, target.channels, self._broken, needs_labels=needs_labels)
        _check_source(self._source, data.name)
        self._texts = open_texts(self._source, data, trained.texts, seed=seed, broken=self._broken)
        self.name = data.name
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)
        self._steps: dict[tuple[str, jax.sharding.Sharding], Callable[..., Batch]] = {}
        self._resident: dict[tuple[str, _Size, bool, jax.sharding.Sharding], _Images] = {}

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
        return True

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches on the devices, from step `start_step` on; the same for any sharding."""
        data, texts = self._data, self._texts
        check_divides(data.batch_size, sharding, where="data.batch_size")
        images = self._images(data.train_split, sharding, kind="train")
        take = self._step(sharding, kind="train")
        training = example_order(
            data, self._source, None if texts is None else texts.wanted, seed=self._seed, groups=self._groups
        )
        targets = dict(self._targets)
        if texts is not None:
            label_N = self._source.labels(data.train_split)

            def tokens(step: int, first: int, number: int) -> np.ndarray:
                record_B = training.records(step * data.batch_size + first + np.arange(number))
                return texts(step, record_B, label_N[record_B])[0]

            targets[TOKENS] = tokens

        def batch(step: int) -> Batch:
            position_B = step * data.batch_size + np.arange(data.batch_size)
            taken = take(images, training.records(position_B).astype(np.int32), np.uint32(step))
            return with_targets(taken, targets, step, data.batch_size, sharding)

        return (batch(step) for step in itertools.count(start_step))

    def _step(self, sharding: jax.sharding.Sharding, *, kind: str) -> Callable[..., Batch]:
        if (kind, sharding) in self._steps:
            return self._steps[kind, sharding]
        chains, seed = self._ops[kind], self._seed

        def augment(images: _Images, record_B: jax.Array, step: jax.Array) -> Batch:
            batch = _gather(images, record_B)
            key = jax.random.fold_in(jax.random.key(seed), step)
            views = {}
            for number, (name, ops) in enumerate(chains.items()):
                # The first view draws as a batch with one view does.
                view_key = jax.random.fold_in(key, 2**31 + number) if number else key
                views[name] = batch.views[IMAGE]
                for place, (_, op) in enumerate(ops):
                    views[name] = op(views[name], jax.random.fold_in(view_key, place))
            return batch._replace(views=views)

        self._steps[kind, sharding] = jax.jit(augment, out_shardings=sharding)
        return self._steps[kind, sharding]

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches on the devices with each image of the split once, in order; the last is padded."""
        size = self._data.eval_batch_size
        check_divides(size, sharding, where="data.eval_batch_size")
        images = self._images(split, sharding, kind="eval")
        take = self._step(sharding, kind="eval")  # which draws nothing
        starts = range(0, len(images.label_N), size)
        return (take(images, np.arange(i, i + size, dtype=np.int32), np.uint32(0)) for i in starts)

    def _build(self, views: Mapping[str, View]) -> dict[str, list[tuple[str, Any]]]:
        """The operations of each view. Raises ConfigError where views disagree on how images are loaded."""
        channels = self._target.channels
        built = {
            name: _build(view.ops, Target(view.height, view.width, channels), where=view.setting)
            for name, view in views.items()
        }
        if len({_loaded_size(ops) for ops in built.values()}) > 1:
            settings = ", ".join(dict.fromkeys(view.setting for view in views.values()))
            raise ConfigError(
                f"{settings}: with data.loader='memory', all views or none begin with 'resize', to one size"
            )
        return built

    def _images(self, split: str, sharding: jax.sharding.Sharding, *, kind: str) -> _Images:
        chains = [*self._ops[kind].values()]
        resized = _loaded_size(chains[0])
        is_cropped = any(name in _CROPS for ops in chains for name, _ in ops)
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        key = (split, resized, is_cropped, sharding)
        if key not in self._resident:
            size = resized or (None if is_cropped else (self._target.height, self._target.width))
            images = self._load(split, size, is_resized=resized is not None, setting=self._setting(kind))
            self._resident[key] = jax.tree.map(lambda x: _replicate(x, sharding), images)
        return self._resident[key]

    def _setting(self, kind: str) -> str:
        return next(iter(self._views[kind].values())).setting

    def _load(self, split: str, size: _Size, *, is_resized: bool, setting: str) -> _Images:
        """All images of the split, resized to `size` by PIL's bilinear filter if `is_resized`.

        They must have `size`; if it is None, as they are cropped later, any size that is the same for all.
        Raises DataError for an image of another size, with the `setting` to change, and for one that cannot
        be read or decoded if data.on_broken says so.
        """
        source, target = self._source, self._target
        texts = self._texts if split == self._data.train_split else None
        label_N, read = source.labels(split), source.image_reader(split)
        records = range(len(label_N))
        label_N = usable_labels(source, split, records, label_N, needs_labels=self._needs_labels)
        image_N: list[np.ndarray | None] = []
        for i in range(len(label_N)):
            image_HxWxC = self._broken.decode(source, split, i, read, channels=target.channels)
            if texts is not None and not texts.has_text(i):
                image_HxWxC = None
            if image_HxWxC is not None and is_resized:
                assert size is not None
                image_HxWxC = resize_in_memory(image_HxWxC, Target(*size, target.channels))
            image_N.append(image_HxWxC)
            if image_HxWxC is None:
                continue
            height, width = image_HxWxC.shape[:2]
            size = size or (height, width)
            if (height, width) != size:
                raise DataError(
                    f"{source.describe(split, i)} is {height} x {width}, not {size[0]} x {size[1]}: begin "
                    f"{setting} with 'resize'"
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


def _loaded_size(ops: list[tuple[str, Any]]) -> _Size:
    """The size to which images are resized when they are loaded; None if they are not."""
    first = ops[0][1] if ops else None
    return (first.height, first.width) if isinstance(first, Resize) else None


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
