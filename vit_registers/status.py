"""Lines for people: permanent ones, and a live one on a terminal that shows what the program is doing.

The live line is on standard error. It is updated in place, and removed before a permanent line is printed.
Where standard error is not a terminal there is none. Imports nothing slow.
"""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

FIRST_S = 1.0  # work that takes longer gets permanent lines
REFRESH_S = 0.5  # until the live line is shown, and between its updates
_LOCK_S = 0.5  # a signal handler may run while another thread prints

_lock = threading.RLock()
_shown: list[TextIO] = []  # the terminal that shows a live line, if any


def is_live(out: TextIO | None = None) -> bool:
    """Whether `out`, by default standard error, is a terminal whose lines can be updated in place."""
    stream: TextIO = sys.stderr if out is None else out
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def is_logged() -> bool:
    """Whether standard output goes to a file or a pipe, or there is no live line beside it."""
    return not (is_live() and sys.stdout.isatty())


def say(line: str, out: TextIO | None = None) -> None:
    """Prints a permanent line on `out`, by default standard output.

    Ignores errors of the output, such as a full disk or a closed pipe.
    """
    stream: TextIO = sys.stdout if out is None else out
    encoding = stream.encoding or "utf-8"
    with _locked(), contextlib.suppress(OSError):  # file names may have characters that the encoding lacks
        clear()
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def show(line: str, out: TextIO | None = None) -> None:
    """Replaces the live line on the terminal `out`, by default standard error. It is cut to one row."""
    stream: TextIO = sys.stderr if out is None else out
    width = shutil.get_terminal_size().columns - 1
    with _locked(), contextlib.suppress(OSError):
        stream.write(f"\r\x1b[K{line[:width]}")
        stream.flush()
        _shown[:] = [stream]


def clear() -> None:
    """Removes the live line."""
    with _locked(), contextlib.suppress(OSError):
        while _shown:
            out = _shown.pop()
            out.write("\r\x1b[K")
            out.flush()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    is_held = _lock.acquire(timeout=_LOCK_S)
    try:
        yield
    finally:
        if is_held:
            _lock.release()


@contextlib.contextmanager
def waiting(
    what: str, *, said_after_s: float | None = FIRST_S, is_quiet: bool = False, out: TextIO | None = None
) -> Iterator[None]:
    """A context for work that may take long, such as "compiling the train step".

    A terminal shows "<what> ... 14 s", updated in place, within the first second. Work of more than
    `said_after_s` also gets permanent lines on `out`, by default standard output: "<what> ..." meanwhile,
    unless it is on the terminal with the live line, and "<what>: 14.2 s" at the end. None: no such lines.
    """
    if is_quiet:
        yield
        return
    started, done = time.monotonic(), threading.Event()
    lasts, is_begun = float("inf") if said_after_s is None else said_after_s, is_logged()

    def tick() -> None:
        has_said = False
        while not done.wait(max(min(REFRESH_S, lasts), 0.01)):
            waited_s = time.monotonic() - started
            if is_begun and not has_said and waited_s >= lasts:
                say(f"{what} ...", out)
                has_said = True
            if is_live():
                show(f"{what} ... {waited_s:.0f} s")

    ticker = threading.Thread(target=tick, name="status", daemon=True)
    ticker.start()
    is_complete = False
    try:
        yield
        is_complete = True
    finally:
        done.set()
        ticker.join(_LOCK_S)
        clear()
        waited_s = time.monotonic() - started
        if is_complete and waited_s >= lasts:
            say(f"{what}: {waited_s:.1f} s", out)


def clock(seconds: float) -> str:
    """A length of time as minutes and seconds, 1:05, or 2:00:05 from an hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
