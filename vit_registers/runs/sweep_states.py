"""The state of each run of a sweep: who trains it, how far it is, and whether it is finished."""

import collections
import contextlib
from collections.abc import Iterator, Sequence

from etils import epath

from vit_registers.errors import ConfigError
from vit_registers.runs.finished_runs import FinishedRuns
from vit_registers.runs.sweeps import SweepRun, read_result, result_text, steps_text
from vit_registers.storage import files, run_lock

LOCK = ".lock"  # the file of the sweeps' lock in a run folder


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[int | None]:
    """storage.run_lock.sweep_lock of a run folder."""
    with contextlib.ExitStack() as held:
        try:
            lock = held.enter_context(run_lock.sweep_lock(folder, LOCK))
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error
        yield lock


def holder(folder: epath.Path) -> str | None:
    """The program that uses a run folder, in a sweep or not; None if there is none. Writes no file."""
    return run_lock.lock_holder(folder) or run_lock.lock_holder(folder, LOCK)


def print_runs(runs: Sequence[SweepRun], finished: FinishedRuns | None) -> None:
    """Prints a line with the state of each run, and the number of runs in each state."""
    width = max(len(run.name) for run in runs)
    counts = collections.Counter()
    for run in runs:
        who = holder(run.folder)
        try:
            result = read_result(run)
            if result is None and finished is not None:
                result = finished.find(run.config)
        except ConfigError as error:
            state, text = "other config", f"other config: {error}"
        else:
            if result is not None:
                state, text = "finished", f"finished  {result_text(result, run.best)}"
            elif who is not None:
                state, text = "running", f"running   {steps_text(run)}, {who}"
            elif files.exists(run.folder / "metrics.jsonl"):
                state, text = "begun", f"begun     {steps_text(run)}"
            else:
                state, text = "not started", "not started"
        counts[state] += 1
        print(f"{run.index:>5}  {run.name:<{width}}  {text}")
    print(f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
