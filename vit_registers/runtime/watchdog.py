"""Ends a process whose steps no longer finish, as of a hung host, device, file system or data source."""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from vit_registers.config import check_value

SEVERAL_PROCESSES_S = 1800.0  # the default limit with several processes
SLOW_FACTOR = 10  # of the limit, for evaluations, saves and the first step, which is compiled


class Watchdog:
    """A context manager with a thread that calls `end` with a line if no step has finished for `limit_s`.

    It asks the devices whether steps are done, without waiting for them, so that the loop is not delayed.
    `limit_s` None: 1800 s with several processes, no limit with one. 0: no limit.
    """

    def __init__(self, limit_s: float | None, end: Callable[[str], None]):
        check_value("run.hang_timeout_s", limit_s)
        if limit_s is None:
            limit_s = SEVERAL_PROCESSES_S if jax.process_count() > 1 else 0.0
        self._limit_s, self._end = limit_s, end
        self._under_way: deque[tuple[int, Any]] = deque()  # (step, array)
        self._doing, self._factor = "the first step", SLOW_FACTOR
        self._last_step, self._since = None, time.monotonic()
        self._closing = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()

    def started(self, step: int, result: jax.Array) -> None:
        """Records that a step has started; `result` is one of its outputs that is not donated to the next."""
        if self._limit_s:
            self._under_way.append((step, result))

    @contextlib.contextmanager
    def slow(self, what: str) -> Iterator[None]:
        """A context for `what`, which may take longer than a step."""
        before = self._doing, self._factor
        self._doing, self._factor, self._since = what, SLOW_FACTOR, time.monotonic()
        try:
            yield
        finally:
            self._since = time.monotonic()
            self._doing, self._factor = before

    def _watch(self) -> None:
        while not self._closing.wait(min(self._limit_s / 10, 1.0)):
            while self._under_way and self._under_way[0][1].is_ready():
                self._last_step, _ = self._under_way.popleft()
                self._since = time.monotonic()
                if self._doing == "the first step":
                    self._doing, self._factor = "training", 1
            waited_s = time.monotonic() - self._since
            if waited_s > self._limit_s * self._factor and not self._closing.is_set():
                last = "none has yet" if self._last_step is None else f"the last was step {self._last_step}"
                self._end(
                    f"no step has finished for {waited_s:.0f} s ({last}; run.hang_timeout_s="
                    f"{self._limit_s:g}); this process was at {self._doing}, in {_place()}"
                )
                return


def _place() -> str:
    """Where the main thread is, in the innermost function of this package."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    package = str(Path(__file__).parents[1])
    while frame is not None and not frame.f_code.co_filename.startswith(package):
        frame = frame.f_back
    if frame is None:
        return "no function of vit_registers"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} ({frame.f_code.co_name})"
