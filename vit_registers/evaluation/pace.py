"""Lines that tell how far a task is: "training 52 heads: 300 of 1000 steps  ETA 0:20"."""

import time
from collections.abc import Callable

from vit_registers.status import clock


class Pace:
    """Counts the steps of a part of a task, and says after each how many are done and the remaining time."""

    def __init__(self, what: str, total: int, say: Callable[[str], None], *, unit: str, first: int = 0):
        """`first` steps are done already, such as those before an interruption."""
        self._what, self._total, self._say, self._unit = what, total, say, unit
        self._first, self._began = first, time.monotonic()

    def done(self, number: int) -> None:
        """Says that `number` of the steps are done."""
        line = f"{self._what}: {min(number, self._total)} of {self._total} {self._unit}"
        spent_s = time.monotonic() - self._began
        if number > self._first and number < self._total:
            left_s = spent_s / (number - self._first) * (self._total - number)
            line += f"  ETA {clock(left_s)}"
        self._say(line)
