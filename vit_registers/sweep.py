"""Runs all points of a config file's sweep(), one after another, each in a process and a folder of its own.

    python -m vit_registers.sweep --config=configs/digits.py --workdir=runs/sweep [--config.model.depth=6]
    python -m vit_registers.sweep --config=configs/digits.py --workdir=runs/sweep --list
    python -m vit_registers.sweep --config=configs/digits.py --workdir=runs/sweep --index=$SLURM_ARRAY_TASK_ID

Finished runs are left alone and others go on from where they are: start it again after anything. Several
sweeps may share a work directory; what one works on, the others leave for later, and wait for at the end.
What a run prints is in its log.txt. A run that fails does not stop the others. SIGTERM or ctrl-C has the run
under way save, and stops. Exit code 0: all runs are done, or a stop was asked for; 2: some failed, all by
what you can mend; 1: some failed otherwise. `python -m vit_registers.tabulate` makes the table.
"""

from vit_registers import startup

startup.begin(__name__)

import collections
import contextlib
import dataclasses
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from absl import flags

from vit_registers import cli
from vit_registers.config import to_config_dict
from vit_registers.errors import ConfigError, UserError
from vit_registers.models.params import abstract_model
from vit_registers.runs import run_lock
from vit_registers.runs.loop import StopRequest
from vit_registers.runs.sweeps import (
    Sweep,
    SweepRun,
    parse_arguments,
    read_result,
    read_sweep,
    result_text,
    steps_text,
)

TRAIN = (sys.executable, "-m", "vit_registers.train")
POLL_S = 0.2
LOOK_AGAIN_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that did not finish, with the exit code of its training, and why."""

    run: SweepRun
    code: int
    reason: str


# --- locks -----------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """The file descriptor with the sweeps' lock of a run folder; None where another program works there.

    Who inherits the descriptor holds the lock too: it is free when the last of them has closed it or died.
    So it is never released here, only closed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}") from error
    with file:
        if not run_lock.try_lock(file.fileno(), folder / ".lock") or run_lock.lock_holder(folder) is not None:
            yield None
        else:
            os.ftruncate(file.fileno(), 0)
            yield file.fileno()


def holder(folder: Path) -> str | None:
    """Who works in a run folder, for a sweep or without one; None where nobody does. Makes nothing."""
    if (trains := run_lock.lock_holder(folder)) is not None:
        return trains
    with contextlib.suppress(OSError), (folder / ".lock").open() as file:  # no such file, or no locks
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another program"
    return None


# --- one run ---------------------------------------------------------------------------------


class Screen:
    """Lines that stay, and on a terminal one that does not."""

    def __init__(self, total: int):
        self._total, self._is_live = total, sys.stdout.isatty()

    def say(self, run: SweepRun, text: str, *, end: str = "\n") -> None:
        """Prints a line that stays."""
        clear = "\r\x1b[K" if self._is_live else ""
        with contextlib.suppress(OSError):  # nobody looks any more: no reason to stop
            print(f"{clear}[{run.index + 1}/{self._total}] {run.name}: {text}", end=end, flush=True)

    def show(self, run: SweepRun, text: str) -> None:
        """Shows a line until the next one, on a terminal only."""
        if self._is_live:
            self.say(run, text, end="")


def start(run: SweepRun, lock: int) -> subprocess.Popen:
    """The process that trains the run; it holds the lock too."""
    command = [*TRAIN, *run.arguments]
    try:
        with (run.folder / "log.txt").open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock,)
            )
    except OSError as error:
        raise ConfigError(f"{run.folder} cannot be written to: {error.strerror}") from error
    with contextlib.suppress(OSError):  # for the eyes only
        os.write(lock, f"process {child.pid} on {socket.gethostname()}\n".encode())
    return child


def watch(child: subprocess.Popen, run: SweepRun, stop: StopRequest, screen: Screen) -> int:
    """The exit code of a run's training, once it has ended. A stop is passed on to it."""
    is_told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(POLL_S)
        screen.show(run, steps_text(run))
        if stop and not is_told:
            # Not SIGINT: ctrl-C on a terminal has reached it already, and its second one stops at once.
            child.terminate()
            is_told = True


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    said = (line for line in reversed(lines) if line and not line.startswith("$ "))
    return next(said, "it printed nothing")[:300]


def finish(run: SweepRun, lock: int, stop: StopRequest, screen: Screen) -> tuple[int, str]:
    """Trains a run to its end, or to a stop, unless it is done: the exit code, and what came of it."""
    try:
        result = read_result(run)
        if result is not None:
            return 0, f"{result_text(result, run.best)}, done before"
        code = watch(start(run, lock), run, stop, screen)
        result = read_result(run)
    except UserError as error:
        return 2, f"failed: {error}"
    if code == 0 and result is not None:
        return 0, result_text(result, run.best)
    if stop:
        return 0, f"stopped at {steps_text(run)}"
    if code == 0:
        return 1, f"was stopped at {steps_text(run)}: {last_line(run.folder / 'log.txt')}"
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    return code, f"failed with {how}: {last_line(run.folder / 'log.txt')}"


# --- all runs --------------------------------------------------------------------------------


def work_off(runs: Sequence[SweepRun], total: int, stop: StopRequest) -> list[Failure]:
    """Finishes all `runs` or leaves them to others, who are waited for. Returns those that failed here."""
    screen, failures = Screen(total), []
    waiting, is_first = list(runs), True
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
                code, text = finish(run, lock, stop, screen)
                screen.say(run, text)
                if code:
                    failures.append(Failure(run=run, code=code, reason=text))
        waiting, is_first = elsewhere, False
        if waiting and not stop:
            screen.show(waiting[0], "waiting for it, as it is running elsewhere")
            time.sleep(LOOK_AGAIN_S)
    return failures


def check(sweep: Sweep, runs: Sequence[SweepRun]) -> None:
    """Raises ConfigError for the first run that cannot be: by its model, its settings or its folder."""
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
            raise ConfigError(f"{where} has a setting that no flag can say: have get_config() set it")


def print_runs(runs: Sequence[SweepRun]) -> None:
    """Prints a line per run with its state, and how many runs there are in each."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    width = max(len(run.name) for run in runs)
    counts = collections.Counter()
    for run in runs:
        who = holder(run.folder)
        try:
            result = read_result(run)
        except ConfigError as error:
            state, text = "other config", f"other config: {error}"
        else:
            if result is not None:
                state, text = "finished", f"finished  {result_text(result, run.best)}"
            elif who is not None:
                state, text = "running", f"running   {steps_text(run)}, {who}"
            elif (run.folder / "metrics.jsonl").exists():
                state, text = "begun", f"begun     {steps_text(run)}"
            else:
                state, text = "not started", "not started"
        counts[state] += 1
        print(f"{run.index:>5}  {run.name:<{width}}  {text}")
    print(f"{len(runs)} runs: " + ", ".join(f"{count} {state}" for state, count in counts.items()))


def exit_code(failures: Sequence[Failure]) -> int:
    """0 without failures, 2 where the user can mend all of them, else 1."""
    if not failures:
        return 0
    return 2 if all(failure.code == 2 for failure in failures) else 1


def main() -> None:
    """The command line."""
    sweep = read_sweep(cli.config_of_flags())
    runs, index = sweep.runs, flags.FLAGS.index
    if index is not None:
        if index >= len(runs):
            raise ConfigError(f"--index={index}: the sweep of {sweep.config} has 0 to {len(runs) - 1}")
        runs = (runs[index],)
    if flags.FLAGS["list"].value:
        print_runs(runs)
        return
    cli.writable_folder(flags.FLAGS.workdir, "--workdir")
    with StopRequest() as stop:
        check(sweep, runs)
        try:
            failures = work_off(runs, len(sweep.runs), stop)
        except KeyboardInterrupt:  # the second ctrl-C
            sys.exit(130)
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure.run.index}  {failure.run.name}: {failure.reason}", file=sys.stderr)
    if stop:
        print(f"{stop}: stopped; the same command goes on from there", flush=True)
    sys.exit(exit_code(failures))


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of all run folders.")
    flags.DEFINE_bool("list", False, "Only print which runs there are and how far they have come.")
    flags.DEFINE_integer("index", None, "Only the run with this number, from 0.", lower_bound=0)
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
