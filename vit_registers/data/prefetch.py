"""Batches taken ahead of the step that wants them, so that they are on the device by then."""

import collections
import itertools
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(batches: Iterator[T], count: int, *, number: int = 2) -> Iterator[T]:
    """The next `count` items of `batches`, in order, with up to `number` more taken than were handed on.

    Putting a batch on the device only begins there, so what was taken ahead travels while steps run. The
    first item is handed on at once, so that the step can be compiled meanwhile. What `batches` raises is
    raised where its item would have come. No more than `count` items are ever taken: an image beyond the
    last step is never looked at. Device memory: `number` batches more. Nothing runs in another thread:
    processes that share a mesh must start their work on it in the same order.
    """
    if number < 0:
        raise ValueError(f"number={number}: want >= 0")
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
            except Exception as error:  # belongs to a later step than the one that is asked for
                failure, is_open = error, False
        if not ready:
            break
        handed_on += 1
        yield ready.popleft()
    if failure is not None:
        raise failure
