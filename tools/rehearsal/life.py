"""The scripted life of a run: what happens to its processes and its storage, and what they do.

Each event begins when process 0 has printed a given step. It returns a row of the table and leaves the run
training.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.rehearsal.jobs import Command, Job
from tools.rehearsal.losses import newest_saved
from tools.rehearsal.stores import Store

LOST = 3  # exit code of vit_registers.train: another process is gone, start again
LOST_TIMEOUT_S = 15.0  # run.lost_timeout_s of the jobs
_SLOW_S = 5.0  # less than that


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table."""

    event: str
    processes: str  # what they did
    noticed: str  # when
    saved: str = "-"
    repeated: int = 0  # steps that are computed twice


class Life(contextlib.AbstractContextManager):
    """A run, and the job that trains it now. Its exit kills all processes."""

    def __init__(
        self, command: Command, *, store: Store, run: str, processes: int, logs: Path, rows: list[Row]
    ):
        """Starts the run. Events are added to `rows`."""
        self.store, self.run, self.processes = store, run, processes
        self.rows = rows
        self.faults: list[str] = []
        self._command, self._logs = command, logs
        self._left = contextlib.ExitStack()
        self._jobs = 0
        self.job = self.start(processes)

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def start(self, processes: int, run: str | None = None) -> Job:
        """A new job of the run, or of the folder `run`."""
        logs, self._jobs = self._logs / f"job-{self._jobs}", self._jobs + 1
        run = self.run if run is None else run
        return self._left.enter_context(Job(self._command, processes=processes, workdir=run, logs=logs))

    def add(self, row: Row) -> None:
        """Adds a row, and prints it for those who wait."""
        self.rows.append(row)
        print(f"{row.event}: {row.processes}", file=sys.stderr, flush=True)

    def restart(self) -> None:
        """A job after one that has ended. Returns when it trains."""
        saved = newest_saved(self.run)
        self.job = self.start(self.processes)
        self.job.wait_for(lambda: self.job.last_step() > saved, f"a step after {saved} in a restart")
        self._expect("restart", "step of the restart", self.job.resumed_step(), saved)

    def _expect(self, event: str, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.faults.append(f"{event}: {what} is {found} instead of {expected}: {self.job.ends()}")

    def ended(
        self, event: str, since: float, codes: Sequence[int], *, others: Sequence[int] = (), run: str = ""
    ) -> Row:
        """The row of an event after which all processes but `others` have to end with `codes`."""
        job = self.job
        job.wait_until_ended(others)
        found = [code for me, code in enumerate(job.codes()) if me not in others]
        self._expect(event, "list of exit codes", found, [*codes])
        last_s = max((at for me, at in job.ended_at.items() if me not in others), default=since) - since
        saved, last = newest_saved(run or self.run), job.last_step()
        return Row(
            event,
            f"exit codes {', '.join(map(str, found))}",
            f"{last_s:.1f} s",
            f"step {saved}",
            max(last - saved, 0),
        )


def preempt(life: Life) -> Row:
    """SIGTERM to the last process: all save at the same step."""
    last, step = life.processes - 1, life.job.last_step()
    life.job.send(last, signal.SIGTERM)
    event = f"SIGTERM to process {last} at step {step}"
    row = life.ended(event, time.monotonic(), [0] * life.processes)
    life.restart()
    return row


def kill_last(life: Life) -> Row:
    """SIGKILL to the last process: the others end."""
    return _kill(life, life.processes - 1)


def kill_first(life: Life) -> Row:
    """SIGKILL to process 0, which coordinates the others."""
    return _kill(life, 0)


def _kill(life: Life, victim: int) -> Row:
    event = f"SIGKILL to process {victim} at step {life.job.last_step()}"
    life.job.send(victim, signal.SIGKILL)
    codes = [-signal.SIGKILL if me == victim else LOST for me in range(life.processes)]
    row = life.ended(event, time.monotonic(), codes)
    life.restart()
    return row


def slow(life: Life) -> Row:
    """A process stands still for less than run.lost_timeout_s: the others wait."""
    job, last = life.job, life.processes - 1
    event = f"SIGSTOP to process {last} for {_SLOW_S:g} s at step {job.last_step()}"
    job.send(last, signal.SIGSTOP)
    time.sleep(_SLOW_S)
    step, since = job.last_step(), time.monotonic()
    job.send(last, signal.SIGCONT)
    job.wait_for(lambda: job.last_step() > step + 1, "a step after a pause")
    later_s = time.monotonic() - since
    return Row(event, "all wait, then go on", f"next steps {later_s:.1f} s after SIGCONT")


def freeze(life: Life) -> Row:
    """A process stands still until the run has been restarted without it, and then wakes up."""
    job, last = life.job, life.processes - 1
    event = f"SIGSTOP to process {last} at step {job.last_step()}, SIGCONT after the restart"
    job.send(last, signal.SIGSTOP)
    row = life.ended(event, time.monotonic(), [LOST] * last, others=[last])
    life.restart()
    since, step = time.monotonic(), life.job.last_step()
    job.send(last, signal.SIGCONT)
    job.wait_until_ended()
    if job.codes()[last] in (0, -signal.SIGKILL):
        life.faults.append(f"{event}: the process that woke up did not end by itself: {job.ends()}")
    late_s = job.ended_at[last] - since
    life.job.wait_for(lambda: life.job.last_step() > step + 1, "a step after the old process woke up")
    woken = f"; {job.codes()[last]} after SIGCONT"
    return dataclasses.replace(
        row, processes=row.processes + woken, noticed=f"{row.noticed}; {late_s:.1f} s after SIGCONT"
    )


def lose_storage(life: Life, how: str, seconds: float) -> Row:
    """The storage fails for a while: the run trains on, and saves when it is back."""
    job, before = life.job, len(life.job.failed_writes())
    event = f"{how} for {seconds:g} s at step {job.last_step()}"
    outage = threading.Thread(target=life.store.outages[how], args=(seconds,))
    began, noticed_s = time.monotonic(), None

    def look_for_lines() -> None:
        nonlocal noticed_s
        if noticed_s is None and len(job.failed_writes()) > before:
            noticed_s = time.monotonic() - began

    def is_saved_again() -> bool:
        look_for_lines()
        return newest_saved(life.run) > step

    outage.start()
    while outage.is_alive():
        look_for_lines()
        outage.join(0.05)
    step, ended = job.last_step(), time.monotonic()
    job.look()
    if job.ended_at and not any(job.codes()):
        raise RuntimeError(
            f"{event}: the run has reached its end, so the rehearsal cannot go on: more --steps"
        )
    job.wait_for(is_saved_again, f"a save after the storage is back, at step {step}")
    back_s, failed = time.monotonic() - ended, len(job.failed_writes()) - before
    return Row(
        event,
        f"train on to step {step}; failed writes reported: {failed}",
        "no line" if noticed_s is None else f"{noticed_s:.1f} s",
        f"step {newest_saved(life.run)}, {back_s:.1f} s after the end",
    )


def lose_all(life: Life) -> Row:
    """SIGKILL to all processes. Nothing is started again."""
    event = f"SIGKILL to all processes at step {life.job.last_step()}"
    for me in range(life.processes):
        life.job.send(me, signal.SIGKILL)
    return life.ended(event, time.monotonic(), [-signal.SIGKILL] * life.processes)


def finish(life: Life, run: str, processes: int) -> Row:
    """A job that trains the folder `run` to the end."""
    life.job = life.start(processes, run)
    resumed, event = life.job.resumed_step, f"restart with {count(processes)}, to the end"
    row = life.ended(event, time.monotonic(), [0] * processes, run=run)
    return dataclasses.replace(row, processes=f"resumed at step {resumed()}; {row.processes}", noticed="-")


def count(processes: int) -> str:
    """The number of processes as text."""
    return "1 process" if processes == 1 else f"{processes} processes"


EVENTS: dict[str, Callable[[Life], Row]] = {
    "preempt": preempt,
    "kill": kill_last,
    "kill_first": kill_first,
    "slow": slow,
    "freeze": freeze,
}
