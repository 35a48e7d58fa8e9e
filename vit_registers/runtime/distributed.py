"""Several processes: how they join a job, and how all of them end when one fails.

A process that fails sets a key of JAX's coordination service, which runs in process 0, to the reason. All
other processes wait for that key, print the reason, and end. Process 0 also checks signs of life, so that the
others end within `lost_timeout_s` after a process was killed or cut off; JAX's own heartbeats are slower.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed  # for its key-value store, which has no public name

from vit_registers.errors import INTERRUPTED, ConfigError, user_line
from vit_registers.runtime.aborts import on_abort
from vit_registers.runtime.rendezvous import KEYS, is_alone, meet, split_address

FIXABLE, LOST = 2, 3  # exit codes: the user has to fix something; a process or host is gone or hung: restart

_STOPPED, _ALIVE, _SEEN = (f"{KEYS}{name}" for name in ("stopped", "alive/", "seen/"))
_FAREWELL_S = 5.0  # process 0, which holds the keys, waits for others to read why it ends, at most so long
_DONE = "done"
_LONGEST_S = 1e7  # operating systems limit the length of waits
_ENDING = threading.Lock()  # held by the thread that prints why this process ends
_exit_code: int | None = None  # set when that line is printed


# --- joining -----------------------------------------------------------------------------------


def join(
    *,
    is_cluster: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_timeout_s: float,
    lost_timeout_s: float,
) -> None:
    """Joins the job that the arguments describe; without any, this process is alone.

    With `is_cluster`, a TPU pod, SLURM or Open MPI numbers the processes. With `coordinator`, "host:port" of
    process 0, `process_id` does. Raises ConfigError if the processes do not find each other.
    """
    if coordinator is None:
        if (num_processes, process_id) != (None, None):
            raise ConfigError("--num_processes and --process_id require --coordinator=host:port as well")
        if not is_cluster:
            return
    elif num_processes is None or process_id is None:
        raise ConfigError("--coordinator requires --num_processes and --process_id as well")
    if not 0 < connect_timeout_s <= _LONGEST_S:
        raise ConfigError(f"--connect_timeout_s={connect_timeout_s:g}: must be > 0 and <= {_LONGEST_S:,.0f}")
    # JAX would catch SIGTERM, which runtime/stopping.py handles.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator is not None and num_processes is not None and process_id is not None:
        meet(coordinator, num_processes=num_processes, process_id=process_id, timeout_s=connect_timeout_s)
    how = "--distributed" if coordinator is None else f"--coordinator={coordinator}"
    # JAX aborts if it cannot connect, so this program ends earlier.
    timer = threading.Timer(connect_timeout_s, _give_up, [how, connect_timeout_s])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=int(connect_timeout_s) + 60,
            heartbeat_timeout_seconds=int(2 * lost_timeout_s) + 10,
        )
    except Exception as error:
        line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        hint = (
            "; outside of TPU pods, SLURM and Open MPI, set --coordinator, --num_processes and --process_id"
        )
        raise ConfigError(f"{how}: {line}{hint if coordinator is None else ''}") from error
    finally:
        timer.cancel()


def _give_up(how: str, timeout_s: float) -> None:
    state = jax_distributed.global_state
    address = state.coordinator_address or "no known address"
    _say(
        f"{how}: not all processes joined within {timeout_s:g} s (--connect_timeout_s); "
        f"this is process {state.process_id}, and process 0 is at {address}"
    )
    _exit(FIXABLE)


# --- ending together ---------------------------------------------------------------------------


def end_all(line: str, code: int) -> NoReturn:
    """Prints the line as an error, tells the other processes, and ends this one. Any thread may call it."""
    _say_why(line, code)  # waits for ever if the watch is ending this process because of another
    client = jax_distributed.global_state.client
    if client is not None:
        notice = json.dumps({"process": jax_distributed.global_state.process_id, "line": line, "code": code})
        # in another thread, as process 0 may not answer
        telling = threading.Thread(target=_tell, args=(client, notice), daemon=True)
        telling.start()
        telling.join(_FAREWELL_S)
        if not telling.is_alive():
            _farewell(client, lost=())
    _exit(code)


def _tell(client: Any, notice: str) -> None:
    with contextlib.suppress(Exception):  # the first of several failures is kept
        client.key_value_set(_STOPPED, notice)


def _say_why(line: str, code: int, *, is_blocking: bool = True) -> bool:
    """Prints why this process ends, once; False if another thread has printed another line."""
    global _exit_code
    if not _ENDING.acquire(blocking=is_blocking):
        return False
    _say(line)
    _exit_code = code
    return True


def _farewell(client: Any, lost: tuple[int, ...]) -> None:
    """Says that this process has printed why it ends. Process 0 waits for this of all others.

    Process 0 waits at most _FAREWELL_S. When it ends, JAX aborts the processes that still run, and
    _end_on_abort ends them with the exit code of the line that they have printed.
    """
    state = jax_distributed.global_state
    deadline = time.monotonic() + _FAREWELL_S
    with contextlib.suppress(Exception):
        client.key_value_set(f"{_SEEN}{state.process_id}", "")
        while state.process_id == 0 and time.monotonic() < deadline:
            if len(client.key_value_dir_get(_SEEN)) >= state.num_processes - len(lost):
                return
            time.sleep(0.05)


def _say(line: str) -> None:
    print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Ends the process without JAX's shutdown, which waits for processes that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def together(lost_timeout_s: float) -> Iterator[None]:
    """A block that every process of the job runs, and in which all processes end when one fails.

    An error that leaves the block ends all processes; each prints the cause. A process that is alone just
    runs the block.
    """
    state = jax_distributed.global_state
    if is_alone():
        yield
        return
    closing = threading.Event()
    on_abort = _end_on_abort(state)
    watch = _Watch(state, lost_timeout_s, closing)
    thread = threading.Thread(target=watch.run, name="peers", daemon=True)
    thread.start()
    try:
        yield
        watch.wait_for_all()  # another process may fail after this one is done
    except BaseException as error:
        _end_for(error, lost_timeout_s)
    closing.set()
    thread.join()  # no call of JAX may be running when the interpreter ends
    jax.distributed.shutdown()
    on_abort.close()


def _end_on_abort(state: Any) -> contextlib.ExitStack:
    """Until it is closed, an abort by JAX, as if process 0 is gone, prints one line, with exit code LOST.

    If this process has printed why it ends, the abort adds no line and does not change the exit code.
    """
    who = f"{state.process_id} of {state.num_processes}"

    def end() -> None:
        while _ENDING.locked():
            if _exit_code is not None:
                _exit(_exit_code)
            time.sleep(0.01)
        try:
            socket.create_connection(split_address(state.coordinator_address), timeout=1.0).close()
            _say(f"JAX aborted this process ({who}) while process 0 is running; see the lines above")
        except OSError:
            _say(f"process 0 is gone, so this process ({who}) ends")
        _exit(LOST)

    return on_abort(end)


def _end_for(error: BaseException, lost_timeout_s: float) -> NoReturn:
    line = user_line(error)
    if line is not None and not _is_of_the_runtime(error):
        end_all(line, FIXABLE)
    if isinstance(error, KeyboardInterrupt):
        end_all("interrupted", INTERRUPTED)
    if _is_of_the_runtime(error) and "RESOURCE_EXHAUSTED" not in str(error):
        # Most often another process is gone. The watch then finds out which, and ends this process.
        time.sleep(lost_timeout_s + _FAREWELL_S)
    if line is not None:
        end_all(line, FIXABLE)
    traceback.print_exception(error)
    end_all(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _is_of_the_runtime(error: BaseException | None) -> bool:
    """Whether it is, or was caused by, an error of the runtime, as if another process is gone."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Watch:
    """The work of a thread in each process: it sends signs of life, and waits for a notice to end."""

    def __init__(self, state: Any, lost_timeout_s: float, closing: threading.Event):
        self._client, self._me, self._count = state.client, state.process_id, state.num_processes
        self._timeout_s, self._closing = lost_timeout_s, closing
        self._interval_s = min(1.0, lost_timeout_s / 6)
        self._is_done = False
        self._last: dict[int, tuple[str, float]] = {i: ("", time.monotonic()) for i in range(1, self._count)}

    def run(self) -> None:
        """Runs until the block that is watched is left."""
        beat = 0
        while not self._closing.is_set():
            beat += 1
            try:
                sign = _DONE if self._is_done else str(beat)
                self._client.key_value_set(f"{_ALIVE}{self._me}", sign, True)
                if self._me == 0:
                    self._look_for_lost()
                notice = self._client.blocking_key_value_get(_STOPPED, int(1000 * self._interval_s))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):  # there is no notice
                    continue
                line = f"process 0 is gone, so this process ({self._me} of {self._count}) ends"
                if not self._closing.is_set() and _say_why(line, LOST, is_blocking=False):
                    _exit(LOST)
                return
            if not self._closing.is_set():
                self._obey(json.loads(notice))

    def wait_for_all(self) -> None:
        """Returns when all processes have done their work. The watch continues meanwhile."""
        self._is_done = True
        self._client.key_value_set(f"{_ALIVE}{self._me}", _DONE, True)
        while True:
            signs = dict(self._client.key_value_dir_get(_ALIVE))
            if sum(sign == _DONE for sign in signs.values()) == self._count:
                return
            time.sleep(0.05)

    def _look_for_lost(self) -> None:
        now = time.monotonic()
        for key, beat in self._client.key_value_dir_get(_ALIVE):
            process = int(key.rpartition("/")[2])
            if process and self._last[process][0] != beat:
                self._last[process] = beat, now
        old = now - self._timeout_s
        lost = [process for process, (beat, when) in self._last.items() if beat != _DONE and when < old]
        if lost:
            names = ", ".join(map(str, lost))
            line = f"no sign of life from process {names} for {self._timeout_s:g} s (run.lost_timeout_s)"
            _tell(self._client, json.dumps({"process": None, "line": line, "code": LOST, "lost": lost}))

    def _obey(self, notice: dict[str, Any]) -> None:
        process = notice["process"]
        if process == self._me:
            return  # end_all is running
        failed = "" if process is None else f"process {process} of {self._count} failed: "
        line = f"{failed}{notice['line']}; this process ({self._me}) ends too"
        if not _say_why(line, notice["code"], is_blocking=False):
            return  # end_all is running here too, with a more specific line
        _farewell(self._client, lost=tuple(notice.get("lost", ())))
        _exit(notice["code"])
