"""Writers of the metrics of a run: metrics.jsonl, and TensorBoard through clu."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from vit_registers.errors import TrainingError, extra_cure, missing_package
from vit_registers.runs.metrics_log import FILE, read_records
from vit_registers.runs.parameter_table import parameter_table
from vit_registers.runs.trackers import Background
from vit_registers.status import say
from vit_registers.storage import files
from vit_registers.storage.line_file import open_lines
from vit_registers.storage.paths import is_remote
from vit_registers.strict_json import dumps


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
        run: epath.Path,
        *,
        start_step: int,
        use_tensorboard: bool,
        restored: Sequence[Mapping[str, Any]] = (),
        trackers: Sequence[Background] = (),
    ):
        self._path, self._trackers = epath.Path(run) / FILE, trackers
        try:
            files.check_appendable(self._path)
            records, damage = read_records(run)
            if damage is not None:
                copy = files.damaged_path(run, FILE)
                files.copy(self._path, copy)
                say(f"{damage}; the whole file is {copy}")
            kept = [record for record in records if record["step"] <= start_step]
            kept = sorted([*kept, *restored], key=lambda record: record["step"])
            files.write_text(self._path, "".join(f"{dumps(record, indent=None)}\n" for record in kept))
            self._lines = open_lines(self._path)
        except OSError as error:
            raise self._error(error) from error
        self._tensorboard = None
        if use_tensorboard and is_remote(run):
            say(f"no TensorBoard files are written to {run}: run.use_tensorboard=False omits this line")
        elif use_tensorboard and (missing := missing_package("tensorflow", "clu")):
            cure = f"{extra_cure('data')}; run.use_tensorboard=False omits this line"
            say(f"no TensorBoard files are written: {missing} is not installed: {cure}")
        elif use_tensorboard:
            from clu.metric_writers import SummaryWriter  # imports TensorFlow

            self._tensorboard = SummaryWriter(str(run / "tensorboard"))

    def __exit__(self, kind: type | None, *_: object) -> None:
        # The first error is the one to show.
        with contextlib.suppress(TrainingError) if kind else contextlib.nullcontext():
            self.close(is_failed=kind is not None)

    def _error(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self._path} cannot be written: {error.strerror}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one record. A number that is not finite is null, as JSON requires."""
        if error := self._lines.append(dumps({"step": step, **scalars}, indent=None).encode() + b"\n"):
            say(f"{self._path} cannot be written: {error.strerror}; the lines are written with the next")
        if self._tensorboard is not None:
            finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
            self._tensorboard.write_scalars(step, finite)
            self._tensorboard.flush()
        for tracker in self._trackers:
            tracker.write(step, scalars)

    def settle(self) -> None:
        """Writes the waiting lines. Raises TrainingError if they cannot be written."""
        if error := self._lines.settle():
            raise self._error(error)

    def before_save(self) -> None:
        """Writes the lines that a run which resumes from the next checkpoint expects."""
        if error := self._lines.before_save():
            say(f"{self._path} cannot be written: {error.strerror}; the lines are written with the next")

    def close(self, *, is_failed: bool = False) -> None:
        """Writes the waiting lines and closes the files. Trackers learn whether the run has failed."""
        try:
            self.settle()
        finally:
            self._lines.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
            for tracker in self._trackers:
                tracker.close(is_failed=is_failed)


def write_parameter_overview(params: Any, path: epath.Path) -> None:
    """Writes the table of all parameters and prints their number."""
    files.write_bytes(path, f"{parameter_table(params)}\n".encode())
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    say(f"parameters: {count:,} in {len(leaves)} tensors; table in {path}")
