"""Training examples with a label for each pixel, and their batches, made on the host ahead of the steps.

Each draw is a function of (seed, step, place in the batch), so that a resumed run draws what an uninterrupted
one does.
"""

import collections
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_registers.data.batch import own_part
from vit_registers.data.order import Order

_AHEAD = 3  # batches
_MAX_THREADS = 16


class DenseExample(NamedTuple):
    """An image with labels, of the same size as all examples of a head."""

    image_HxWxC: np.ndarray  # uint8
    label_HxW: np.ndarray  # as in DensePair
    size: tuple[int, int]  # (rows, columns) of the image; the rest, to the right and below, is padding


class Examples(NamedTuple):
    """The training split of a head."""

    number: int
    make: Callable[[int, np.random.Generator], DenseExample]  # of a record from 0 to number - 1
    is_random: bool  # whether `make` draws; features of other examples are computed once


class DenseBatch(NamedTuple):
    """Examples on the devices, or as numpy arrays."""

    image_BxHxWxC: Any  # uint8
    label_BxHxW: Any
    size_Bx2: Any  # int32


def stack(examples: list[DenseExample]) -> DenseBatch:
    """The batch of examples."""
    images, labels, sizes = zip(*examples, strict=True)
    return DenseBatch(np.stack(images), np.stack(labels), np.array(sizes, np.int32))


def train_batches(
    examples: Examples, order: Order, steps: range, sharding: jax.sharding.Sharding
) -> Iterator[DenseBatch]:
    """The global batches of `steps` on the devices. Each process makes its share."""
    places = own_places(order.batch_size, sharding)

    def make(record: int, step: int, place: int) -> DenseExample:
        return examples.make(record, np.random.default_rng([order.seed, step, place]))

    def tasks(step: int) -> list[tuple[Any, ...]]:
        records = order.records(step * order.batch_size + np.array(places))
        return [(make, int(record), step, place) for record, place in zip(records, places, strict=True)]

    return in_threads(tasks, steps, functools.partial(put_shares, sharding))


def own_places(batch_size: int, sharding: jax.sharding.Sharding) -> range:
    """The places in a batch whose examples this process makes."""
    index, count = own_part(sharding)
    local = batch_size // count
    return range(index * local, (index + 1) * local)


def put_shares(sharding: jax.sharding.Sharding, made: list[DenseExample]) -> DenseBatch:
    """The global batch on the devices, from the examples that each process makes."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), stack(made))


def in_threads(
    tasks_of: Callable[[int], list[tuple[Any, ...]]], numbers: range, finish: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    """finish(results of the tasks) for each number, in order; the tasks run in threads ahead of it.

    `tasks_of(number)` returns the tasks, each a function and its arguments. Threads are enough, since PIL and
    NumPy release the interpreter. An exception of a task is raised instead of its result.
    """
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
    waiting: collections.deque[list[Future[Any]]] = collections.deque()

    def taken() -> Any:
        return finish([future.result() for future in waiting.popleft()])

    try:
        for number in numbers:
            waiting.append([pool.submit(*task) for task in tasks_of(number)])
            if len(waiting) > _AHEAD:
                yield taken()
        while waiting:
            yield taken()
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)
