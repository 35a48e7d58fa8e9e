"""What an analysis is doing: a live line on a terminal, and a line from time to time in a log."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from vit_registers import status


class AnalysisProgress(contextlib.AbstractContextManager):
    """Shows on standard error the experiment that runs, its time, and the remaining time.

    A terminal has a live line. In a log, a line is printed if there was none for `log_every_s`. The remaining
    time is that of the images, where their number is known; else it is estimated for all `num_experiments`
    from those that are done.
    """

    def __init__(self, num_experiments: int, log_every_s: float):
        self._total, self._log_every_s = num_experiments, log_every_s
        self._num_done, self._next_log = 0, time.monotonic() + log_every_s
        self._running: dict[str, float] = {}  # experiments, with their starts
        self._began: float | None = None  # the first experiment
        self._work: tuple[str, int, int, float, int] | None = None  # what, done, total, since, done then
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> "AnalysisProgress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        status.clear()

    def images(self, what: str, done: int, total: int) -> None:
        """Notes that `done` of `total` images are done; a `total` of 0 is work without a known end."""
        with self._lock:
            since, first = time.monotonic(), done
            if self._work is not None and self._work[0] == what:
                *_, since, first = self._work
            self._work = None if total and done >= total else (what, done, total, since, first)

    @contextlib.contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """A context in which an experiment runs. Several may run at once, in threads."""
        with self._lock:
            now = time.monotonic()
            self._began = now if self._began is None else self._began
            self._running[name], self._work = now, None
        try:
            yield
        finally:
            with self._lock:
                del self._running[name]
                self._num_done += 1
                self._work = None
                self._next_log = time.monotonic() + self._log_every_s

    def line(self) -> str | None:
        """The state in a line; None between two experiments."""
        with self._lock:
            now, parts, eta_s = time.monotonic(), [], None
            if self._running:
                name, since = min(self._running.items(), key=lambda item: item[1])
                parts.append(f"{name} ({self._num_done + 1} of {self._total})  {status.clock(now - since)}")
                if self._num_done and self._began is not None:
                    left = self._total - self._num_done
                    eta_s = max((now - self._began) / self._num_done * left - (now - since), 0.0)
            if self._work is not None:
                what, done, total, since, first = self._work
                parts.append(f"{what}: {done} of {total} images" if total else what)
                if done > first:
                    eta_s = (now - since) / (done - first) * (total - done)
            if not parts:
                return None
            about = "" if eta_s is None else f"ETA {status.clock(eta_s)}"
            return "  ".join(filter(None, (*parts, about)))

    def _show(self) -> None:
        is_live = status.is_live()
        while not self._closing.wait(status.REFRESH_S):
            line = self.line()
            if line is not None and is_live:
                status.show(line)
            elif line is not None and time.monotonic() >= self._next_log:
                status.say(line, sys.stderr)
                self._next_log = time.monotonic() + self._log_every_s


class Findings:
    """Prints findings in the order of `names`, each as soon as it and those before it are known."""

    def __init__(self, names: list[str]):
        self._left, self._known, self._lock = list(names), dict[str, str](), threading.Lock()

    def add(self, name: str, finding: str) -> None:
        """Notes the finding of an experiment."""
        with self._lock:
            self._known[name] = finding
            while self._left and self._left[0] in self._known:
                first = self._left.pop(0)
                status.say(f"{first}: {self._known[first]}")
