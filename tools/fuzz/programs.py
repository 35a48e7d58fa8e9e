"""Runs programs of the package in forked processes, so that modules are imported only once."""

import contextlib
import os
import re
import resource
import runpy
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

TIMEOUT_S = 600.0  # a model of 64 blocks took more than 240 s to compile beside other work
_MEMORY_BYTES = 12 << 30
# Text of a traceback, which no message of the package contains.
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|^  File \"", re.M)


class Ended(NamedTuple):
    """A program that has ended. `code` is None after the time limit."""

    code: int | None
    out: str
    err: str

    @property
    def is_refused(self) -> bool:
        """Whether it ended with code 2 and one line of error."""
        return self.code == 2 and self.err.startswith("error: ") and self.err.strip().count("\n") == 0

    @property
    def fault(self) -> str | None:
        """The fault in how it ended, or None."""
        if self.code is None:
            return "hang"
        if _TRACEBACK.search(self.err) or _TRACEBACK.search(self.out):
            return "traceback"
        if self.code == 0:
            return None
        if self.code == 2:
            return None if self.is_refused else "more than one line"
        return f"exit code {self.code}"


def import_all() -> None:
    """Imports the modules of all programs. Does not initialise devices, because a fork cannot use them."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
    import vit_registers.analyze
    import vit_registers.convert
    import vit_registers.evaluate
    import vit_registers.train  # noqa: F401


def start(program: str, *arguments: str, log: Path) -> int:
    """The process id of a fork that runs a program of the package. Its output is in log.out and log.err."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = [program, *arguments]
        sys.modules.pop(f"vit_registers.{program}", None)
        warnings.simplefilter("ignore", DeprecationWarning)
        runpy.run_module(f"vit_registers.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def wait(child: int, log: Path, timeout_s: float = TIMEOUT_S) -> Ended:
    """The outcome of a started program, which is killed after the time limit."""
    deadline, status = time.monotonic() + timeout_s, None
    while status is None:
        ended, found = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        else:
            time.sleep(0.02)
    texts = [log.with_suffix(f".{name}").read_text(errors="replace") for name in ("out", "err")]
    return Ended(status, *texts)


def run(program: str, *arguments: str, log: Path) -> Ended:
    """Starts a program and waits for it."""
    return wait(start(program, *arguments, log=log), log)
