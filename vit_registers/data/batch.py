"""The Batch contract that every loader keeps, and what happens to a batch on the device."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Config, image_size
from vit_registers.errors import ConfigError


class Batch(NamedTuple):
    """Images and labels. On the host: this process's share, numpy. On the device: global, sharded.

    image_BxHxWxC: uint8. label_B: int32; where an image may have several right labels, which is for
    evaluation only, BxK, padded with -1. mask_B: bool, False for padding and for images left out.
    """

    image_BxHxWxC: np.ndarray | jax.Array
    label_B: np.ndarray | jax.Array
    mask_B: np.ndarray | jax.Array


def pad_batch(batch: Batch, size: int) -> Batch:
    """The batch padded to `size` examples with zero images, label 0 and mask False."""
    missing = size - len(batch.label_B)
    if missing == 0:
        return batch
    assert missing > 0, (size, len(batch.label_B))
    return Batch(*(np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in batch))


def to_device(batch: Batch, sharding: jax.sharding.Sharding) -> Batch:
    """The global batch on the devices, from the share that each process holds."""
    return Batch(*(jax.make_array_from_process_local_data(sharding, x) for x in batch))


def relabel(batches: Iterable[Batch], table: np.ndarray | None) -> Iterator[Batch]:
    """The batches on the devices with label table[i] for i; -1 stays. None: as they are."""
    if table is None:
        return iter(batches)
    apply = jax.jit(lambda label: jnp.where(label < 0, label, jnp.asarray(table)[jnp.maximum(label, 0)]))
    return (batch._replace(label_B=apply(batch.label_B)) for batch in batches)


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


def synthetic_batches(config: Config, *, seed: int = 0, start_step: int = 0) -> Iterator[Batch]:
    """Endless host batches of noise, a pure function of (seed, step): for tests and benchmarks."""
    height, width = image_size(config)
    shape = (config.data.batch_size, height, width, config.model.channels)
    step = start_step
    while True:
        rng = np.random.default_rng([seed, step])
        yield Batch(
            rng.integers(0, 256, shape, dtype=np.uint8),
            rng.integers(0, max(config.model.num_classes, 1), shape[0]).astype(np.int32),
            np.ones(shape[0], bool),
        )
        step += 1
