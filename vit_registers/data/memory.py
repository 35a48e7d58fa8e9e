"""The loader for data sets that fit on the accelerator, and are augmented there. No TensorFlow.

The order of examples is that of the tf.data loader for random-access data (order.py); the random
draws of the augmentation are not.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Config, image_size
from vit_registers.data import images as images_lib
from vit_registers.data import order
from vit_registers.data.batch import IMAGE, Batch, check_divides, labelled_batch
from vit_registers.data.broken import BrokenImages
from vit_registers.data.images import Images
from vit_registers.data.ops import strings
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

Op = Callable[[jax.Array, jax.Array], jax.Array]  # (image_BxHxWxC, key) -> image_BxHxWxC


def resize(target: Target) -> Op:
    """Images of target size; done once, when they are loaded (images.py), so that here nothing is left."""
    del target
    return lambda image_BxHxWxC, key: image_BxHxWxC


def random_crop(target: Target, padding: int = 4) -> Op:
    """A random part of target size of each image padded with `padding` pixels of zeros on each side."""
    if padding < 0:
        raise ConfigError(f"random_crop: padding={padding}: want >= 0")

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        padded_BxHxWxC = jnp.pad(image_BxHxWxC, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        room_y, room_x = _room(padded_BxHxWxC, target, f"random_crop({padding})")
        start_Bx2 = jax.random.randint(key, (len(image_BxHxWxC), 2), 0, jnp.array([[room_y + 1, room_x + 1]]))

        def part(image_HxWxC: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image_HxWxC, (start[0], start[1], 0), target)

        return jax.vmap(part)(padded_BxHxWxC, start_Bx2)

    return apply


def central_crop(target: Target) -> Op:
    """The middle part of target size; of an odd rest the larger half lies below and to the right."""

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        del key
        room_y, room_x = _room(image_BxHxWxC, target, "central_crop")
        y, x = room_y // 2, room_x // 2
        return image_BxHxWxC[:, y : y + target.height, x : x + target.width]

    return apply


def _room(image_BxHxWxC: jax.Array, target: Target, name: str) -> tuple[int, int]:
    """By how much images are higher and wider than the target. Raises ConfigError where they are smaller."""
    height, width = image_BxHxWxC.shape[1:3]
    if height < target.height or width < target.width:
        raise ConfigError(
            f"{name} of images that are {height} x {width} there: "
            f"want {target.height} x {target.width} at least; begin with 'resize'"
        )
    return height - target.height, width - target.width


def flip(target: Target) -> Op:
    """Each image or, in half of the cases, its mirror image (left and right exchanged)."""
    del target

    def apply(image_BxHxWxC: jax.Array, key: jax.Array) -> jax.Array:
        is_flipped_Bx1x1x1 = jax.random.bernoulli(key, shape=(len(image_BxHxWxC), 1, 1, 1))
        return jnp.where(is_flipped_Bx1x1x1, image_BxHxWxC[:, :, ::-1], image_BxHxWxC)

    return apply


MEMORY_OPS: dict[str, Callable[..., Op]] = {
    "resize": resize,
    "random_crop": random_crop,
    "central_crop": central_crop,
    "flip": flip,
}
_CROPS = ("random_crop", "central_crop")
_FOR_EVALUATION = ([], ["resize"], ["central_crop"])


class MemoryLoader:
    """The Loader (loaders.py) for data.loader='memory'."""

    def __init__(self, config: Config) -> None:
        """Opens the data set; reads no image. Raises DataError or ConfigError, one line each."""
        data = config.data
        self._config = config
        self._target = Target(*image_size(config), config.model.channels)
        self._train_ops = _build(data.train_ops, self._target, where="data.train_ops")
        self._eval_ops = _build(data.eval_ops, self._target, where="data.eval_ops")
        if [name for name, _ in self._eval_ops] not in _FOR_EVALUATION:
            raise ConfigError(
                f"data.eval_ops={data.eval_ops!r}: in memory, want '', 'resize' or 'central_crop'"
            )
        self._broken = BrokenImages(config)
        self._source = images_lib.open_source(config, self._broken)
        self.class_names = self._source.class_names
        self.num_classes = len(self.class_names)
        self._train_steps: dict[jax.sharding.Sharding, Callable[..., Batch]] = {}
        self._resident: dict[tuple[str, bool, bool, jax.sharding.Sharding], Images] = {}

    @property
    def num_broken(self) -> int:
        """How many different images were left out so far; every process leaves out the same."""
        return self._broken.count

    def num_examples(self, split: str) -> int:
        """How many examples the split has."""
        return self._source.num_examples(split)

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches on the devices, from step `start_step` on; the same for any sharding."""
        data = self._config.data
        check_divides(data.batch_size, sharding, where="data.batch_size")
        images = self._images(data.train_split, sharding, setting="train_ops")
        take = self._train_step(sharding)
        training = order.training_order(self._config, len(images.label_N))

        def batches() -> Iterator[Batch]:
            step = start_step
            while True:
                position_B = step * data.batch_size + np.arange(data.batch_size)
                yield take(images, training.records(position_B).astype(np.int32), np.uint32(step))
                step += 1

        return batches()

    def _train_step(self, sharding: jax.sharding.Sharding) -> Callable[..., Batch]:
        """The compiled function (images, record_B, step) -> augmented batch."""
        if sharding in self._train_steps:
            return self._train_steps[sharding]
        ops, seed = [op for _, op in self._train_ops], self._config.run.seed

        def augment(images: Images, record_B: jax.Array, step: jax.Array) -> Batch:
            batch = _gather(images, record_B)
            key = jax.random.fold_in(jax.random.key(seed), step)
            image_BxHxWxC = batch.views[IMAGE]
            for place, op in enumerate(ops):
                image_BxHxWxC = op(image_BxHxWxC, jax.random.fold_in(key, place))
            return batch._replace(views={IMAGE: image_BxHxWxC})

        self._train_steps[sharding] = jax.jit(augment, out_shardings=sharding)
        return self._train_steps[sharding]

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches on the devices with each image of the split once, in order; the last is padded."""
        size = self._config.data.eval_batch_size
        check_divides(size, sharding, where="data.eval_batch_size")
        images = self._images(split, sharding, setting="eval_ops")

        def take(images: Images, record_B: jax.Array) -> Batch:
            batch = _gather(images, record_B)
            for _, op in self._eval_ops:
                batch = batch._replace(views={IMAGE: op(batch.views[IMAGE], jax.random.key(0))})
            return batch

        gather = jax.jit(take, out_shardings=sharding)
        starts = range(0, len(images.label_N), size)
        return (gather(images, np.arange(start, start + size, dtype=np.int32)) for start in starts)

    def _images(self, split: str, sharding: jax.sharding.Sharding, *, setting: str) -> Images:
        """The split as arrays on every device of the sharding, loaded once."""
        text = getattr(self._config.data, setting)
        names = [name for name, _ in _build(text, self._target, where=f"data.{setting}")]
        is_resized, is_cropped = "resize" in names, not set(names).isdisjoint(_CROPS)
        if isinstance(sharding, jax.sharding.NamedSharding):
            sharding = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        key = (split, is_resized, is_cropped, sharding)
        if key not in self._resident:
            images = images_lib.load(
                self._source.open(split),
                self._target,
                self._broken,
                is_resized=is_resized,
                is_cropped=is_cropped,
                setting=f"data.{setting}",
            )
            self._resident[key] = jax.tree.map(lambda x: _replicate(x, sharding), images)
        return self._resident[key]


def _build(text: str, target: Target, *, where: str) -> list[tuple[str, Any]]:
    built = strings.build(text, MEMORY_OPS, target, where=where)
    if "resize" in [name for name, _ in built[1:]]:
        raise ConfigError(f"{where}={text!r}: resize can only come first with data.loader='memory'")
    return built


def _replicate(x_N: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(x_N.shape, sharding, lambda index: x_N[index])


def _gather(images: Images, record_B: jax.Array) -> Batch:
    """The examples `record_B`; those past the end are padding: zero, with mask False."""
    return labelled_batch(*(jnp.take(x, record_B, axis=0, mode="fill", fill_value=0) for x in images))
