"""Writers of the metrics of a run: metrics.jsonl, and TensorBoard through clu."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax

from vit_registers.errors import TrainingError, extra_cure, missing_package
from vit_registers.runs.folders import OpenFolder, damaged_path
from vit_registers.runs.metrics_log import FILE, read_records
from vit_registers.runs.parameter_table import parameter_table
from vit_registers.runs.trackers import Background
from vit_registers.status import say
from vit_registers.strict_json import dumps, write_text

_REMOVAL_S = 1.0  # allowed for the removal of a folder


class MetricWriter(contextlib.AbstractContextManager):
    """Appends one JSON line per call to RUN/metrics.jsonl; TensorBoard and `trackers` get the same scalars.

    A context manager. It first removes the lines of steps after `start_step`, which a killed run has left,
    and adds the records `restored`. The file then equals that of an uninterrupted run. If lines are not
    records, the file is copied to RUN/damaged and a line is printed. Only process 0 should write. Lines that
    cannot be written are written with the next. A file that is removed is written again. Raises TrainingError
    if the file cannot be created, or if lines are unwritten at the end.
    """

    def __init__(
        self,
        run: Path,
        *,
        start_step: int,
        use_tensorboard: bool,
        restored: Sequence[Mapping[str, Any]] = (),
        trackers: Sequence[Background] = (),
    ):
        self._path, self._trackers = run / FILE, trackers
        self._waiting = b""
        self._missing_since: float | None = None
        try:
            with self._path.open("ab"):
                records, damage = read_records(run)
            if damage is not None:
                copy = shutil.copy(self._path, damaged_path(run, FILE))
                say(f"{damage}; the whole file is {copy}")
            kept = [record for record in records if record["step"] <= start_step]
            kept = sorted([*kept, *restored], key=lambda record: record["step"])
            write_text(self._path, "".join(f"{dumps(record, indent=None)}\n" for record in kept))
            self._folder = OpenFolder(run)
            self._file = self._open()
        except OSError as error:
            raise self._error(error) from error
        self._tensorboard = None
        if use_tensorboard and (missing := missing_package("tensorflow", "clu")):
            cure = f"{extra_cure('data')}; run.use_tensorboard=False omits this line"
            say(f"no TensorBoard files are written: {missing} is not installed: {cure}")
        elif use_tensorboard:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow

            self._tensorboard = SummaryWriter(str(run / "tensorboard"))

    def __exit__(self, kind: type | None, *_: object) -> None:
        # The first error is the one to show.
        with contextlib.suppress(TrainingError) if kind else contextlib.nullcontext():
            self.close(is_failed=kind is not None)

    def _open(self) -> BinaryIO:
        # In the folder that the run was started in, not in one that has taken its name.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.fdopen(os.open(FILE, flags, 0o666, dir_fd=self._folder.file), "ab", buffering=0)

    def _follow(self, is_last: bool) -> bool:
        """Whether the open file is the one in the folder, after opening it again where needed.

        The contents of a removed file are put before the waiting lines. The file is not created again at
        once, as the whole folder may be under removal.
        """
        try:
            if os.path.samestat(os.stat(FILE, dir_fd=self._folder.file), os.fstat(self._file.fileno())):
                return True
            earlier, what = b"", "replaced: lines are written to the new file"
        except FileNotFoundError:
            self._missing_since = self._missing_since or time.monotonic()
            if not is_last and time.monotonic() < self._missing_since + _REMOVAL_S:
                return False
            earlier = os.pread(self._file.fileno(), os.fstat(self._file.fileno()).st_size, 0)
            what = "removed: it is written again"
        opened = self._open()
        self._file.close()
        self._file, self._waiting, self._missing_since = opened, earlier + self._waiting, None
        say(f"during the run, {self._path} was {what}")
        return True

    def _error(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self._path} cannot be written: {error.strerror}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one record. A number that is not finite is null, as JSON requires."""
        if error := self._append(dumps({"step": step, **scalars}, indent=None).encode() + b"\n"):
            say(f"{self._path} cannot be written: {error.strerror}; the lines are written with the next")
        if self._tensorboard is not None:
            finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
            self._tensorboard.write_scalars(step, finite)
            self._tensorboard.flush()
        for tracker in self._trackers:
            tracker.write(step, scalars)

    def _append(self, line: bytes) -> OSError | None:
        is_first, self._waiting = not self._waiting, self._waiting + line
        size = None
        try:
            if not self._follow(is_last=not line):
                return None
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
        """Writes the waiting lines. Raises TrainingError if they cannot be written."""
        if self._waiting and (error := self._append(b"")):
            raise self._error(error)

    def close(self, *, is_failed: bool = False) -> None:
        """Writes the waiting lines and closes the files. Trackers learn whether the run has failed."""
        try:
            self.settle()
        finally:
            self._file.close()
            self._folder.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
            for tracker in self._trackers:
                tracker.close(is_failed=is_failed)


def write_parameter_overview(params: Any, path: Path) -> None:
    """Writes the table of all parameters and prints their number."""
    path.write_text(parameter_table(params) + "\n")
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    say(f"parameters: {count:,} in {len(leaves)} tensors; table in {path}")
