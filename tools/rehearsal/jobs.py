"""Jobs: several local processes of vit_registers.train, which join over loopback."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_POLL_S = 0.02
_STEP = re.compile(r"^step (\d+)/\d+  loss ", re.MULTILINE)
_RESUMED = re.compile(r"^resumes at step (\d+) of ", re.MULTILINE)
_FAILED_WRITE = re.compile(r"^.* (?:could not|cannot) be written: .*$", re.MULTILINE)


class Command(NamedTuple):
    """What all processes of a job have in common."""

    train: Sequence[str]  # the flags of vit_registers.train without --workdir
    devices: int  # fake CPU devices of each process
    port: int  # of process 0; every job of a run has the same one, as on a cluster
    environment: dict[str, str]  # in addition to that of this program
    limit_s: float  # no wait takes longer


class Job:
    """A running job. A context manager: its exit kills the processes that are left."""

    def __init__(self, command: Command, *, processes: int, workdir: str, logs: Path):
        """Starts `processes` processes. Their outputs are logs/0.log and so on."""
        self.processes: list[subprocess.Popen] = []
        self.ended_at: dict[int, float] = {}  # time.monotonic()
        self._limit_s, self._logs = command.limit_s, logs
        logs.mkdir(parents=True)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={command.devices}",
            **command.environment,
        }
        for me in range(processes):
            flags = [*command.train, f"--workdir={workdir}", f"--coordinator=127.0.0.1:{command.port}"]
            flags += [f"--num_processes={processes}", f"--process_id={me}"]
            with (logs / f"{me}.log").open("w") as log:
                arguments = [sys.executable, "-m", "vit_registers.train", *flags]
                self.processes.append(
                    subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=log, stderr=log)
                )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def text(self, me: int = 0) -> str:
        """What a process has printed."""
        return (self._logs / f"{me}.log").read_text(errors="replace")

    def last_step(self) -> int:
        """The last step that process 0 has printed, or else the one that it resumed from."""
        text = self.text()
        return max(map(int, _STEP.findall(text) or _RESUMED.findall(text)), default=0)

    def resumed_step(self) -> int:
        """The step that process 0 resumed from; 0 for a new run."""
        return int(next(iter(_RESUMED.findall(self.text())), 0))

    def failed_writes(self) -> list[str]:
        """The lines about saves and metrics that could not be written, of all processes."""
        return [line for me in range(len(self.processes)) for line in _FAILED_WRITE.findall(self.text(me))]

    def send(self, me: int, number: int) -> None:
        """Sends a signal to a process."""
        self.processes[me].send_signal(number)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Returns when `condition` holds. Raises RuntimeError if a process ends first, or after the limit."""
        deadline = time.monotonic() + self._limit_s
        while not condition():
            self.look()
            if self.ended_at:
                raise RuntimeError(f"a process ended before {what}: {self.ends()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"within {self._limit_s:g} s there was not {what}")
            time.sleep(_POLL_S)

    def look(self) -> None:
        """Notes the processes that have ended."""
        for me, process in enumerate(self.processes):
            if me not in self.ended_at and process.poll() is not None:
                self.ended_at[me] = time.monotonic()

    def wait_until_ended(self, others: Sequence[int] = ()) -> None:
        """Returns when all processes but `others` have ended; kills those that have not within the limit."""
        deadline, waiting = time.monotonic() + self._limit_s, set(range(len(self.processes))) - {*others}
        while waiting - self.ended_at.keys() and time.monotonic() < deadline:
            self.look()
            time.sleep(_POLL_S)
        for me in waiting - self.ended_at.keys():
            self.send(me, signal.SIGKILL)
            self.processes[me].wait()
        self.look()

    def codes(self) -> list[int | None]:
        """The exit code of each process: None if it runs, minus a signal's number if that killed it."""
        return [process.poll() for process in self.processes]

    def ends(self) -> str:
        """The exit codes, and the last line of each process, for people."""
        lines = [
            (self.text(me).strip().splitlines() or ["no output"])[-1] for me in range(len(self.processes))
        ]
        return "; ".join(
            f"process {me}: {code} ({line})"
            for me, (code, line) in enumerate(zip(self.codes(), lines, strict=True))
        )
