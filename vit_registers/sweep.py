"""Trains all runs of a config file's sweep(), one after another, each in a separate process and folder.

    vit-registers sweep --config=digits --workdir=runs/sweep [--config.model.depth=6]
    vit-registers sweep --config=digits --workdir=runs/sweep --list
    vit-registers sweep --config=digits --workdir=runs/sweep --index=$SLURM_ARRAY_TASK_ID

Finished runs are skipped, and others resume from their checkpoints, so the same command can be started again
at any time. Several sweeps may share a work directory: each skips the runs of the others, and waits for them
at the end. The output of a run is in its log.txt. A run that fails does not stop the others. On SIGTERM or
ctrl-C the current run saves, and the sweep stops. `vit-registers tabulate` prints the table of
results.

With --finished=FILE.csv a line of that file is added for each run that finishes, and runs that it has are not
trained, wherever they were: the file takes a sweep to another machine.

Exit codes: 0, all runs finished, or a stop was requested; 2, runs failed with errors that you can fix; 1,
runs failed with other errors.

`python -m vit_registers.sweep` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli

    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder that holds the run folders.")
    flags.DEFINE_bool("list", False, "Print the runs with their states, and train nothing.")
    flags.DEFINE_string(
        "finished", None, "CSV file of finished runs, which are not trained; others are added."
    )
    flags.DEFINE_integer("index", None, "Train only the run with this number, from 0.", lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir"])


startup.begin(__name__, define_flags)

import contextlib
import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

import jax
from etils import epath

from vit_registers import cli
from vit_registers.config import to_config_dict
from vit_registers.errors import INTERRUPTED, ConfigError, UserError
from vit_registers.models.params import abstract_model
from vit_registers.runs.finished_runs import FinishedRuns, read_finished
from vit_registers.runs.loop import StopRequest
from vit_registers.runs.sweep_states import holder, locked, print_runs
from vit_registers.runs.sweeps import (
    Sweep,
    SweepRun,
    parse_arguments,
    read_result,
    read_sweep,
    result_text,
    steps_text,
)
from vit_registers.storage import files

TRAIN = (sys.executable, "-m", "vit_registers.train")
POLL_S = 0.2
LOOK_AGAIN_S = 1.0
LOG = "log.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not finish, with the exit code of its training and the reason."""

    run: SweepRun
    code: int
    reason: str


# --- one run ---------------------------------------------------------------------------------


class Screen:
    """Prints permanent lines, and on a terminal also a status line that the next line replaces."""

    def __init__(self, total: int):
        self._total, self.is_live = total, sys.stdout.isatty()

    def say(self, run: SweepRun, text: str, *, end: str = "\n") -> None:
        """Prints a permanent line."""
        clear = "\r\x1b[K" if self.is_live else ""
        with contextlib.suppress(OSError):  # the output is closed
            print(f"{clear}[{run.index + 1}/{self._total}] {run.name}: {text}", end=end, flush=True)

    def show(self, run: SweepRun, text: str) -> None:
        """Shows a status line until the next line, on a terminal only."""
        if self.is_live:
            self.say(run, text, end="")


def start_run(run: SweepRun, lock: int, log: BinaryIO) -> subprocess.Popen:
    """The process that trains the run. It holds the lock too."""
    command = [*TRAIN, *run.arguments]
    log.write(f"$ {shlex.join(command)}\n".encode())
    log.flush()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
    )
    with contextlib.suppress(OSError):  # only a description
        os.write(lock, f"process {child.pid} on {socket.gethostname()}\n".encode())
    return child


def watch(child: subprocess.Popen, run: SweepRun, stop: StopRequest, screen: Screen) -> int:
    """Waits for the training of a run and returns its exit code. Forwards a stop request to it."""
    is_told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_S)
        if screen.is_live:
            screen.show(run, steps_text(run))
        if stop and not is_told:
            # Not SIGINT: ctrl-C on a terminal sends it to the child too, and a second one ends it at once.
            child.terminate()
            is_told = True


def train(run: SweepRun, lock: int, stop: StopRequest, screen: Screen) -> int:
    """Trains a run, whose output is appended to its log.txt, and returns the exit code."""
    try:
        with files.appended(run.folder / LOG) as log:
            return watch(start_run(run, lock, log), run, stop, screen)
    except OSError as error:
        raise ConfigError(f"{run.folder} cannot be written to: {error.strerror}") from error


def last_line(path: epath.Path) -> str:
    """The last line of the output of a run."""
    lines = [line.strip() for line in files.read_file(path).decode(errors="replace").splitlines()]
    printed = (line for line in reversed(lines) if line and not line.startswith("$ "))
    return next(printed, "it printed nothing")[:300]


def finish(
    run: SweepRun, lock: int, stop: StopRequest, screen: Screen, finished: FinishedRuns | None
) -> tuple[int, str]:
    """Trains a run unless it is finished. Returns the exit code and a description of the outcome."""
    try:
        result = read_result(run)
        is_before = result is not None
        code = 0 if is_before else train(run, lock, stop, screen)
        result = read_result(run)
        if finished is not None and code == 0 and result is not None:
            finished.add(run.name, run.config, result)
        if is_before and result is not None:
            return 0, f"{result_text(result, run.best)}, finished before"
    except UserError as error:
        return 2, f"failed: {error}"
    if code == 0 and result is not None:
        return 0, result_text(result, run.best)
    if stop:
        return 0, f"stopped at {steps_text(run)}"
    if code == 0:
        return 1, f"was stopped at {steps_text(run)}: {last_line(run.folder / LOG)}"
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return code, f"failed with {how}: {last_line(run.folder / LOG)}"


# --- all runs --------------------------------------------------------------------------------


def work_off(
    runs: Sequence[SweepRun], total: int, stop: StopRequest, finished: FinishedRuns | None = None
) -> list[Failure]:
    """Trains all `runs`, and waits for those that other sweeps train. Returns the runs that failed here.

    Runs in `finished` are not trained, and those that finish are added to it.
    """
    screen, failures = Screen(total), []
    waiting, is_first = [], True
    for run in runs:
        result = None if finished is None else finished.find(run.config)
        if result is None:
            waiting.append(run)
        else:
            screen.say(run, f"{result_text(result, run.best)}, in the file of finished runs")
    while waiting and not stop:
        elsewhere = []
        for run in waiting:
            if stop:
                break
            with locked(run.folder) as lock:
                if lock is None:
                    elsewhere.append(run)
                    if is_first:
                        screen.say(run, f"is running elsewhere ({holder(run.folder) or 'no longer'}); later")
                    continue
                code, text = finish(run, lock, stop, screen, finished)
                screen.say(run, text)
                if code:
                    failures.append(Failure(run=run, code=code, reason=text))
        waiting, is_first = elsewhere, False
        if waiting and not stop:
            screen.show(waiting[0], "waiting for the program that trains it")
            time.sleep(LOOK_AGAIN_S)
    return failures


def check_sweep(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Raises ConfigError for the first run with an invalid model, settings that no flag can set, or a run
    folder of another config."""
    jax.config.update("jax_platforms", "cpu")  # the accelerator's memory is for the runs
    models = set()
    for run in runs:
        read_result(run)
        where = f"point {run.index} of the sweep of {sweep.config} ({run.name})"
        model = dataclasses.replace(run.config.model, depth=1)  # all blocks are alike
        if model not in models:
            models.add(model)
            try:
                abstract_model(model)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from error
        if parse_arguments(to_config_dict(sweep.base), run.arguments) != run.config:
            raise ConfigError(f"{where} has a setting that no flag can set: set it in get_config()")


def exit_code(failures: Sequence[Failure]) -> int:
    """0 without failures, 2 if the user can fix all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.code == 2 for failure in failures) else 1


def main() -> None:
    """The command line."""
    sweep = read_sweep()
    runs, index = sweep.runs, flags.FLAGS.index
    if index is not None:
        if index >= len(runs):
            raise ConfigError(f"--index={index}: the sweep of {sweep.config} has 0 to {len(runs) - 1}")
        runs = (runs[index],)
    finished = read_finished(flags.FLAGS.finished)
    if flags.FLAGS["list"].value:
        print_runs(runs, finished)
        return
    cli.writable_folder(flags.FLAGS.workdir, "--workdir")
    with StopRequest() as stop:
        check_sweep(sweep, runs)
        try:
            failures = work_off(runs, len(sweep.runs), stop, finished)
        except KeyboardInterrupt:  # the second ctrl-C
            sys.exit(INTERRUPTED)
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure.run.index}  {failure.run.name}: {failure.reason}", file=sys.stderr)
    if stop:
        print(f"{stop}: stopped; the same command resumes", flush=True)
    sys.exit(exit_code(failures))


if __name__ == "__main__":
    cli.run(main)
