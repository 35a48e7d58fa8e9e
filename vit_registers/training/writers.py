"""Where the numbers of a run go: metrics.jsonl, TensorBoard through clu, and a live line on a terminal."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import jax

from vit_registers.errors import TrainingError
from vit_registers.strict_json import dumps


class MetricWriter:
    """Appends one JSON line per call to RUN/metrics.jsonl, and the same scalars to TensorBoard if asked to.

    Lines of steps after `start_step`, which a killed run left behind, are taken out first: the file is
    that of a run that never stopped. Only process 0 should write. Lines that cannot be written wait, and
    are tried again with the next. Raises TrainingError where the file cannot be made, or lines still wait at
    the end.
    """

    def __init__(self, run: Path, *, start_step: int, use_tensorboard: bool):
        self._path = run / "metrics.jsonl"
        self._waiting = b""
        try:
            kept = [line for line in complete_lines(self._path) if json.loads(line)["step"] <= start_step]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept))
            os.replace(temporary, self._path)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise self._error(error) from error
        self._tensorboard = None
        if use_tensorboard:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow

            self._tensorboard = SummaryWriter(str(run / "tensorboard"))

    def _error(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self._path} cannot be written: {error.strerror}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One record, on disk when this returns. What is not finite is null, as JSON has no other word."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if error := self._append(dumps({"step": step, **scalars}, indent=None).encode() + b"\n"):
            say(f"{self._path} cannot be written: {error.strerror}; the lines wait for the next")
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, finite)
            self._tensorboard.flush()

    def _append(self, line: bytes) -> OSError | None:
        """Writes what waits and the line. What went wrong, if it did; then the file is as it was."""
        is_first, self._waiting = not self._waiting, self._waiting + line
        size = None
        try:
            size = os.fstat(self._file.fileno()).st_size
            left = self._waiting
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    self._file.truncate(size)
            return error if is_first or not line else None
        self._waiting = b""
        return None

    def settle(self) -> None:
        """Returns when no line waits any more. Raises TrainingError where that cannot be."""
        if self._waiting and (error := self._append(b"")):
            raise self._error(error)

    def close(self) -> None:
        """Closes the files, after a last try."""
        try:
            self.settle()
        finally:
            self._file.close()
            if self._tensorboard is not None:
                self._tensorboard.close()


def say(line: str) -> None:
    """Prints a line on what cannot be written; where the log cannot be either, there is nobody to tell."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def complete_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file, without a last one that a kill cut off."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=False) if line.endswith("}")]


class Progress:
    """A live line with step, images/s, time to go and loss; silent where `out` is no terminal.

    With `is_quiet` nothing is shown at all: for all processes but the first. `time_s` are the seconds of the
    run up to the last update, with `earlier_s` of earlier starts.
    """

    def __init__(
        self,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        earlier_s: float = 0.0,
        is_quiet: bool = False,
        out: TextIO = sys.stderr,
    ):
        self._total, self._batch_size, self._out = total_steps, batch_size, out
        self._is_quiet, self._is_live = is_quiet, out.isatty() and not is_quiet
        self._mark = (start_step, time.monotonic())
        self._started = self._mark[1] - earlier_s
        self.images_per_s, self.time_s = 0.0, earlier_s

    def update(self, step: int, loss: float) -> None:
        """Shows the state after `step`; the rate is that since the last update."""
        last_step, last_time = self._mark
        now = time.monotonic()
        self.images_per_s = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self.time_s = now - self._started
        self._mark = (step, now)
        if self._is_live:
            left_s = (self._total - step) * self._batch_size / max(self.images_per_s, 1e-9)
            self._out.write(
                f"\r\x1b[Kstep {step}/{self._total}  loss {loss:.4f}  "
                f"{self.images_per_s:,.0f} images/s  {_clock(left_s)} to go"
            )
            self._out.flush()

    def restart(self, step: int) -> None:
        """Leaves the time since the last update out of the rate: it went into something else than steps."""
        self._mark = (step, time.monotonic())

    def say(self, line: str) -> None:
        """Prints a line that stays, terminal or not."""
        if self._is_live:
            self._out.write("\r\x1b[K")
            self._out.flush()
        if not self._is_quiet:
            print(line, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def write_parameter_overview(params: object, path: Path) -> None:
    """Writes the table of all parameters and prints how many there are."""
    from clu import parameter_overview

    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    path.write_text(table + "\n")
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    print(f"parameters: {count:,} in {len(leaves)} tensors; table in {path}", flush=True)
