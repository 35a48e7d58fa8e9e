"""Batches that are transferred, and programs that are started, ahead of those that are needed."""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax

T = TypeVar("T")


def ahead(batches: Iterator[T], count: int, *, number: int = 2) -> Iterator[T]:
    """The next `count` items of `batches`, in order, taken up to `number` items ahead.

    Transfers to the device are asynchronous, so batches that are taken ahead are transferred while steps run.
    The first item is yielded before any is taken ahead, so that the step compiles meanwhile. An exception of
    `batches` is raised instead of its item. At most `count` items are taken: no image beyond the last
    step is read. This needs device memory for `number` more batches. It uses no thread: processes that share
    a mesh must start their work on it in the same order.
    """
    if number < 0:
        raise ValueError(f"number={number}: must be >= 0")
    ready: collections.deque[T] = collections.deque()
    source, failure = itertools.islice(batches, count), None
    handed_on, is_open = 0, True
    while True:
        wanted = min(handed_on, number) + 1
        while is_open and len(ready) < wanted:
            try:
                ready.append(next(source))
            except StopIteration:
                is_open = False
            except Exception as error:  # it belongs to a later step than the current one
                failure, is_open = error, False
        if not ready:
            break
        handed_on += 1
        yield ready.popleft()
    if failure is not None:
        raise failure


def in_turn(results: Iterable[T], *, number: int = 2) -> Iterator[T]:
    """The results of programs that the iterable starts on the devices, in order, each when it is computed.

    Up to `number` programs are started ahead of the result that is yielded. More of them would hold their
    batches in device memory. On a CPU with several devices they would also deadlock: of the programs that are
    started at the same time, about 30 can wait, and the threads of the others are those that a reduction over
    the devices waits for.
    """
    waiting: collections.deque[T] = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > number:
            yield jax.block_until_ready(waiting.popleft())
    while waiting:
        yield jax.block_until_ready(waiting.popleft())
