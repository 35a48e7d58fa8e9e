"""Prefetching of batches to the device."""

import collections
import itertools
from collections.abc import Iterator
from typing import TypeVar

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
