"""The gcloud commands of tools/launch/tpu.py: a queued resource with one TPU node, and its workers."""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.launch import tpu_worker

WORKER = os.path.relpath(tpu_worker.__file__)
FOLDER = "vit_registers_run"  # in the home directory of each worker
ABSENT, ACTIVE = "ABSENT", "ACTIVE"
LEAVING = ("SUSPENDING", "DELETING")
GONE = (ABSENT, "FAILED", "SUSPENDED", *LEAVING)  # it does not become ACTIVE from these
_CALL_S, _INSTALL_S = 900, 3600  # limits of a call; deleting a large pod takes minutes
# A connection without an answer for 90 s ends, so that gcloud connects again.
_ALIVE = ("--ssh-flag=-o ServerAliveInterval=30", "--ssh-flag=-o ServerAliveCountMax=3")


class GcloudError(Exception):
    """A gcloud command failed; the text is one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The queued resource as the user describes it; accelerator and runtime are "" if it must exist."""

    name: str
    zone: str
    project: str
    accelerator_type: str
    runtime_version: str
    is_spot: bool
    create_flags: tuple[str, ...]
    ssh_flags: tuple[str, ...]

    def _where(self) -> list[str]:
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]

    def _queued(self, verb: str, *flags: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *flags, *self._where(), "--quiet"]

    def create(self) -> list[str]:
        """The command that creates it, with a node of its name."""
        kind = [f"--accelerator-type={self.accelerator_type}", f"--runtime-version={self.runtime_version}"]
        spot = ["--spot"] if self.is_spot else []
        return self._queued("create", self.name, f"--node-id={self.name}", *kind, *spot, *self.create_flags)

    def delete(self) -> list[str]:
        """The command that deletes it and its node."""
        return self._queued("delete", self.name, "--force")

    def listing(self) -> list[str]:
        """The command that lists all of the zone; unlike that of `describe`, its failure has one meaning."""
        return self._queued("list", "--format=json")

    def ssh(self, worker: str, command: str) -> list[str]:
        """The command that runs a shell command on a worker, or on "all"."""
        flags = [*self._where(), f"--worker={worker}", *_ALIVE, *self.ssh_flags, "--quiet"]
        return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *flags, f"--command={command}"]

    def scp(self, *files: str) -> list[str]:
        """The command that copies files to all workers."""
        flags = [*self._where(), "--worker=all", *self.ssh_flags, "--quiet"]
        return ["gcloud", "compute", "tpus", "tpu-vm", "scp", *files, f"{self.name}:{FOLDER}/", *flags]


def worker_command(*words: str) -> str:
    """The shell command that calls tpu_worker.py on a worker."""
    return shlex.join(["python3", f"{FOLDER}/{Path(WORKER).name}", *words])


def start_command(attempt: str, grace_s: float, command: tuple[str, ...]) -> str:
    """The shell command that starts an attempt on a worker."""
    return worker_command("start", attempt, f"{grace_s:g}", *command)


def status_command() -> str:
    """The shell command that makes the folder, and reports what runs if tpu_worker.py is there."""
    there = f"{FOLDER}/{Path(WORKER).name}"
    return f"mkdir -p {FOLDER}; test ! -e {there} || {worker_command('status')}"


def call(command: list[str], timeout_s: float = _CALL_S) -> list[str]:
    """Runs a gcloud command; the lines of its standard output. Raises GcloudError if it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise GcloudError(f"{_verb(command)}: no end after {timeout_s:g} s") from None
    if done.returncode:
        told = [one for one in messages(done.stdout.splitlines()) if "failed" in one]
        why = f"{told[0]['host']}: {told[0]['failed']}" if told else _reason(done.stderr)
        raise GcloudError(f"{_verb(command)}: exit code {done.returncode}: {why}")
    return done.stdout.splitlines()


def _verb(command: list[str]) -> str:
    return " ".join(["gcloud", *command[3:5]])


def _reason(err: str) -> str:
    """The line of gcloud's standard error that says what went wrong."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR", "#####"))]
    return (marked or lines or ["it printed no reason"])[-1]


def messages(lines: list[str]) -> list[dict[str, Any]]:
    """What tpu_worker.py told in these lines."""
    return [json.loads(line[len(tpu_worker.MARK) :]) for line in lines if line.startswith(tpu_worker.MARK)]


def state(request: Request) -> tuple[str, str]:
    """(state, reason) of the queued resource. Raises GcloudError if gcloud does not answer.

    The state is ABSENT if there is none of that name. The reason is "" if the service gives none.
    """
    try:
        found = json.loads("\n".join(call(request.listing())) or "[]")
    except ValueError as error:
        raise GcloudError(f"gcloud queued-resources list: not JSON: {error}") from None
    for one in found:
        if one["name"].rpartition("/")[2] == request.name:
            told = one.get("state", {})
            why = told.get("failedData", {}).get("error", {}).get("message", "")
            return told.get("state", "STATE_UNSPECIFIED"), " ".join(why.split())
    return ABSENT, ""


def install(request: Request, files: list[str], words: list[str]) -> None:
    """Copies the files to all workers and installs the wheel there. Raises GcloudError."""
    call(request.scp(WORKER, *files))
    call(request.ssh("all", worker_command("install", *words)), _INSTALL_S)


class Follower(threading.Thread):
    """Follows the log of an attempt on worker 0, and hands its new lines to `show`.

    `ended` is what `follow` of tpu_worker.py told at the end of the run, and None while it runs. `position`
    is the byte up to which lines were shown, from which another follower goes on. `reason` is what gcloud
    said last.
    """

    def __init__(self, request: Request, attempt: str, position: int, show: Callable[[str], None]):
        super().__init__(daemon=True)
        self.position, self.ended, self._show = position, None, show
        self.reason, self.has_connected = "", False
        command = request.ssh("0", worker_command("follow", attempt, str(position)))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that `close` also ends the ssh that gcloud starts
        )
        self._errors = threading.Thread(target=self._read_errors, daemon=True)

    def run(self) -> None:
        """Reads until the connection or the run ends."""
        self._errors.start()
        at = self.position
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip("\n")
            told = messages([text])
            if not told:
                at += len(line)
                if at > self.position:  # gcloud connects again by itself, and then repeats lines
                    self.position = at
                    self._show(text)
            elif "follows" in told[0]:
                at, self.has_connected = told[0]["follows"], True
            else:
                self.ended = told[0]
        self._process.wait()
        self._errors.join()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self.reason = _reason(self._process.stderr.read().decode(errors="replace"))

    def close(self) -> None:
        """Ends the connection."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self.join(10)
