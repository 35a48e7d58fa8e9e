"""The Batch that every loader delivers, and what is done with a batch on the device."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Data, Model
from vit_registers.errors import ConfigError


class Batch(NamedTuple):
    """Views of images and targets. On the host: this process's share, numpy. On the device: global, sharded.

    views: {name: uint8 BxHxWxC}; the loaders deliver one view, IMAGE. targets: {name: array}; the loaders
    deliver LABEL, int32 of shape B. For evaluation only, an image may have several correct labels: BxK,
    padded with -1. mask_B: bool, False for padding and for images that are left out.
    """

    views: Mapping[str, Any]
    targets: Mapping[str, Any]
    mask_B: Any


IMAGE, LABEL = "image", "label"
TOKENS = "tokens"  # the target tokens_BxL, int32: the ids of a text of each image


class View(NamedTuple):
    """How a view of a training batch is made from an image: its size in pixels, and the operations."""

    height: int
    width: int
    ops: str  # data/ops/catalog.py: OPS; on_device.py: MEMORY_OPS
    setting: str  # the name of the setting that has `ops`, for messages


# (step, first example of the global batch, number of examples) -> the target of these examples
MakeTarget = Callable[[int, int, int], np.ndarray]


class Texts(NamedTuple):
    """What the target TOKENS has: how many tokens, with ids below `vocab_size`."""

    context: int
    vocab_size: int
    # The pairs that are compared: each `group` consecutive ones of a batch. None: all of the batch.
    group: int | None = None


class Training(NamedTuple):
    """What a training batch has: its views, and targets that are made on the host for each batch."""

    views: Mapping[str, View]
    targets: Mapping[str, MakeTarget]
    texts: Texts | None = None  # None: no TOKENS


def default_training(data: Data, target: Any) -> Training:
    """One view, IMAGE, made by data.train_ops. `target` has the height and width of the images."""
    return Training({IMAGE: View(target.height, target.width, data.train_ops, "data.train_ops")}, {})


def own_part(sharding: jax.sharding.Sharding) -> tuple[int, int]:
    """(index, count): this process makes part `index` of `count` equal parts of a batch with this sharding.

    It makes the whole batch if the sharding is over its own devices alone.
    """
    return (0, 1) if sharding.is_fully_addressable else (jax.process_index(), jax.process_count())


def with_targets(
    batch: Batch,
    targets: Mapping[str, MakeTarget],
    step: int,
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> Batch:
    """The global batch on the devices with the `targets` of a step, of which each process makes its share."""
    if not targets:
        return batch
    index, count = own_part(sharding)
    number = batch_size // count
    first = index * number
    made = {name: make(step, first, number) for name, make in targets.items()}
    placed = {name: jax.make_array_from_process_local_data(sharding, x) for name, x in made.items()}
    return batch._replace(targets={**batch.targets, **placed})


def labelled_batch(
    image_BxHxWxC: np.ndarray | jax.Array,
    label_B: np.ndarray | jax.Array,
    mask_B: np.ndarray | jax.Array,
) -> Batch:
    """The batch with one view, IMAGE, and one target, LABEL."""
    return Batch(views={IMAGE: image_BxHxWxC}, targets={LABEL: label_B}, mask_B=mask_B)


def pad_batch(batch: Batch, size: int) -> Batch:
    """The batch padded to `size` examples with zero images, zero targets and mask False."""
    missing = size - len(batch.mask_B)
    if missing == 0:
        return batch
    assert missing > 0, (size, len(batch.mask_B))
    return jax.tree.map(lambda x: np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)), batch)


def split_batch(tree: Any, num_parts: int) -> Any:
    """The arrays of a batch with a leading axis of `num_parts` micro-batches.

    A micro-batch has every num_parts-th example, so that each device computes on its share of the batch.
    """

    def split(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, tree)


def join_batch(tree: Any) -> Any:
    """The arrays of a batch from those of its micro-batches: the reverse of split_batch."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def to_device(batch: Batch, sharding: jax.sharding.Sharding) -> Batch:
    """The global batch on the devices, from the share that each process holds."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def relabel(batches: Iterable[Batch], table: np.ndarray | None) -> Iterator[Batch]:
    """The batches on the devices with table[i] instead of label i; -1 stays.

    Without a table, the batches are unchanged.
    """
    if table is None:
        return iter(batches)
    apply = jax.jit(lambda label: jnp.where(label < 0, label, jnp.asarray(table)[jnp.maximum(label, 0)]))
    return (
        batch._replace(targets={**batch.targets, LABEL: apply(batch.targets[LABEL])}) for batch in batches
    )


def check_divides(size: int, sharding: jax.sharding.Sharding, *, where: str) -> None:
    """Raises ConfigError when a batch of `size` cannot be split evenly; `where` is the setting to name."""
    try:
        sharding.shard_shape((size,))
    except ValueError:
        raise ConfigError(f"{where}={size} does not divide over {sharding.num_devices} devices") from None


def normalize(image_BxHxWxC: jax.Array, *, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Float32 images (image / 255 - mean) / std; mean and std are per channel, of values in [0, 1]."""
    scale_C = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift_C = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    image_BxHxWxC = image_BxHxWxC.astype(jnp.float32)
    return image_BxHxWxC * scale_C.reshape(1, 1, 1, -1) - shift_C.reshape(1, 1, 1, -1)


def synthetic_batches(data: Data, model: Model, *, seed: int = 0, start_step: int = 0) -> Iterator[Batch]:
    """Endless host batches of noise, a pure function of (seed, step): for tests and benchmarks."""
    height, width = data.image_size or model.image_size
    shape = (data.batch_size, height, width, model.channels)
    step = start_step
    while True:
        rng = np.random.default_rng([seed, step])
        yield labelled_batch(
            rng.integers(0, 256, shape, dtype=np.uint8),
            rng.integers(0, max(model.num_classes, 1), shape[0]).astype(np.int32),
            np.ones(shape[0], bool),
        )
        step += 1
