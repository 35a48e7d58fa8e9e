"""What a run prints about its steps: a live line on a terminal, and a line from time to time in a log."""

import collections
import contextlib
import time
from typing import TextIO

from vit_registers import status

_WINDOW_S = 10.0  # the rate that is shown is that of at least this time, if there was no evaluation in it


class Progress:
    """Shows step, loss, images/s and remaining time, and measures the times of the metrics.

    A terminal has a live line. Where standard output is a file or a pipe, a line is printed every
    `log_every_s`. With `is_quiet`, for all processes but the first, nothing is printed. `time_s` is the
    training time up to the last call of `update`, including `earlier_s` of earlier starts.
    """

    def __init__(
        self,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        log_every_s: float,
        earlier_s: float = 0.0,
        is_quiet: bool = False,
        out: TextIO | None = None,
    ):
        """`out` is the terminal of the live line, sys.stderr by default."""
        self._total, self._batch_size, self._log_every_s = total_steps, batch_size, log_every_s
        self._is_quiet, self._out = is_quiet, out
        self._is_live = status.is_live(out) and not is_quiet
        self._is_logged = status.is_logged() and not is_quiet
        now = time.monotonic()
        self._mark = (start_step, now)
        self._shown = collections.deque([self._mark])  # (step, time) since the last restart
        self._first = self._mark  # after compilation; for the remaining time
        self._next_live, self._next_log = now, now + log_every_s
        self._started = now - earlier_s
        self._rate = 0.0  # images/s, as shown last
        self.images_per_s, self.time_s = 0.0, earlier_s

    def update(self, step: int) -> None:
        """Sets `time_s`, and `images_per_s` to the rate since the last call or restart, for the metrics."""
        last_step, last_time = self._mark
        now = time.monotonic()
        self.images_per_s = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self.time_s = now - self._started
        self._mark = (step, now)

    def is_due(self) -> bool:
        """Whether `show` would print."""
        now = time.monotonic()
        return (self._is_live and now >= self._next_live) or (self._is_logged and now >= self._next_log)

    def show(self, step: int, loss: float) -> None:
        """Prints the state after `step`, which is finished, if it is due."""
        if not self.is_due():
            return
        now = time.monotonic()
        while len(self._shown) > 1 and self._shown[1][1] < now - _WINDOW_S:
            self._shown.popleft()
        last_step, last_time = self._shown[0]
        if step > last_step:
            self._rate = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self._shown.append((step, now))
        line = f"step {step}/{self._total}  loss {loss:.4f}  {self._rate:,.0f} images/s"
        first_step, first_time = self._first
        if step > first_step and now > first_time + status.FIRST_S:  # a single step says little
            left_s = (self._total - step) * (now - first_time) / (step - first_step)
            line += f"  ETA {status.clock(left_s)}"
        if self._is_logged and now >= self._next_log:
            self._next_log = now + self._log_every_s
            status.say(line)
        if self._is_live:
            self._next_live = now + status.REFRESH_S
            status.show(line, self._out)

    def restart(self, step: int) -> None:
        """Excludes the time since the last update from the rates, as after an evaluation."""
        self._mark = (step, time.monotonic())
        self._shown.clear()
        self._shown.append(self._mark)

    def compiled(self, step: int) -> None:
        """Excludes the time until now, of compilation, from the rates and from the remaining time."""
        self.restart(step)
        self._first = self._mark
        self._next_log = self._mark[1] + self._log_every_s

    def waiting(
        self, what: str, *, said_after_s: float = status.FIRST_S
    ) -> contextlib.AbstractContextManager:
        """status.waiting of this run."""
        return status.waiting(what, said_after_s=said_after_s, is_quiet=self._is_quiet)

    def seldom(self, what: str) -> contextlib.AbstractContextManager:
        """The same for work that recurs: it has permanent lines only if it takes `log_every_s`."""
        return self.waiting(what, said_after_s=self._log_every_s)

    def say(self, line: str) -> None:
        """Prints a permanent line."""
        if not self._is_quiet:
            status.say(line)
