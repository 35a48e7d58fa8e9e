"""Several processes: how they come together, and how all of them end when one fails.

A process that fails says why under a key of JAX's coordination service, which lives in process 0. All others
wait on that key, print what it says, and end. Process 0 also looks for signs of life, so that a process that
was killed or cut off ends the others in `lost_timeout_s`. JAX's own heartbeats are behind ours, with more
than twice the time.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed  # for its key-value store, which has no public name

from vit_registers.errors import INTERRUPTED, ConfigError, user_line
from vit_registers.runtime.aborts import on_abort
from vit_registers.runtime.rendezvous import agree, meet, split_address

MENDABLE, LOST = 2, 3  # exit codes: something to mend first; a process or host is gone or hung: start again

KEYS = "vit_registers/"  # what all names in the key-value store begin with
_STOPPED, _ALIVE, _SEEN = (f"{KEYS}{name}" for name in ("stopped", "alive/", "seen/"))
_FAREWELL_S = 5.0  # process 0, which holds the keys, stays so long for others to read why it ends
_AGREE_S = 3600.0  # for all to be there: opening large data sets takes minutes, here more than there
_rounds = itertools.count()  # of require_same, which every process counts alike
_DONE = "done"
_LONGEST_S = 1e7  # operating systems take no waits of any length
_ENDING = threading.Lock()  # held by the thread that says why this process ends


def key_value_store() -> Any:
    """JAX's store of strings that all processes of a job share; None where there is but one."""
    return jax_distributed.global_state.client


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
    """Returns when this process is one of several, or when none of the arguments asks for that.

    With `is_cluster` a TPU pod or SLURM says who is who; with `coordinator`, "host:port" of process 0, the
    numbers do. Raises ConfigError where the processes do not find each other.
    """
    given = (coordinator, num_processes, process_id)
    if coordinator is None:
        if given != (None, None, None):
            raise ConfigError("--num_processes and --process_id want --coordinator=host:port as well")
        if not is_cluster:
            return
    elif None in given:
        raise ConfigError("--coordinator wants --num_processes and --process_id as well")
    if not 0 < connect_timeout_s <= _LONGEST_S:
        raise ConfigError(f"--connect_timeout_s={connect_timeout_s:g}: want > 0 and <= {_LONGEST_S:,.0f}")
    # JAX would catch SIGTERM for its own purposes; runtime/stopping.py does.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator is not None:
        assert num_processes is not None and process_id is not None, "checked above"
        meet(coordinator, num_processes=num_processes, process_id=process_id, timeout_s=connect_timeout_s)
    how = f"--coordinator={coordinator}" if coordinator is not None else "--distributed"
    # JAX aborts where it cannot connect, so we have to be earlier.
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
        hint = "; outside of TPU pods and SLURM give --coordinator, --num_processes and --process_id"
        raise ConfigError(f"{how}: {line}{hint if coordinator is None else ''}") from error
    finally:
        timer.cancel()


def _give_up(how: str, timeout_s: float) -> None:
    state = jax_distributed.global_state
    where = (
        f"process {state.process_id}, process 0 being at {state.coordinator_address or 'no known address'}"
    )
    _say(
        f"{how}: not all processes came together within {timeout_s:g} s (--connect_timeout_s); "
        f"this is {where}"
    )
    _exit(MENDABLE)


# --- ending together ---------------------------------------------------------------------------


def end_all(line: str, code: int) -> NoReturn:
    """Prints the line as an error, tells the other processes, and ends this one. From any thread."""
    _ENDING.acquire()  # the watch may be ending this process for another's failure, and has said so
    _say(line)
    client = jax_distributed.global_state.client
    if client is not None:
        notice = json.dumps({"process": jax_distributed.global_state.process_id, "line": line, "code": code})
        # In a thread of its own: process 0, which is asked, may not answer.
        telling = threading.Thread(target=_tell, args=(client, notice), daemon=True)
        telling.start()
        telling.join(_FAREWELL_S)
        _farewell(client, lost=())
    _exit(code)


def _tell(client: Any, notice: str) -> None:
    with contextlib.suppress(Exception):  # of several failures the first one counts
        client.key_value_set(_STOPPED, notice)


def _farewell(client: Any, lost: tuple[int, ...]) -> None:
    """On process 0, returns when all others have seen the notice, or after a while."""
    state = jax_distributed.global_state
    if state.process_id != 0:
        return
    deadline = time.monotonic() + _FAREWELL_S
    with contextlib.suppress(Exception):
        while time.monotonic() < deadline:
            if len(client.key_value_dir_get(_SEEN)) >= state.num_processes - 1 - len(lost):
                return
            time.sleep(0.05)


def _say(line: str) -> None:
    print(f"error: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """Ends the process without JAX's farewell, which waits for processes that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def together(lost_timeout_s: float, settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    """A block in which no process outlives another's failure; every process of the job goes through it.

    An error that leaves the block ends all processes; each prints the cause. The same for `settings`, by
    name, that are not those of process 0. One process alone is left alone.
    """
    state = jax_distributed.global_state
    is_alone = state.client is None or state.num_processes == 1
    if not lost_timeout_s > 0:
        line = f"run.lost_timeout_s={lost_timeout_s:g}: want > 0"
        if not is_alone:
            end_all(line, MENDABLE)
        raise ConfigError(line)
    if is_alone:
        yield
        return
    closing = threading.Event()
    on_abort = _end_on_abort(state)
    watch = _Watch(state, lost_timeout_s, closing)
    thread = threading.Thread(target=watch.run, name="peers", daemon=True)
    thread.start()
    try:
        require_same(settings or {})
        yield
        watch.wait_for_all()  # one that fails after this one is done is heard too
    except BaseException as error:
        _end_for(error, lost_timeout_s)
    closing.set()
    thread.join()  # a call into JAX must not be under way when the interpreter ends
    jax.distributed.shutdown()
    on_abort.close()


def require_same(settings: Mapping[str, Any]) -> None:
    """Returns when all processes, which have to call it, have compared `settings` with those of process 0.

    Raises ConfigError on a process where they differ. It is for the block of `together`, whose watch ends
    the wait for a process that fails before it is here.
    """
    state = jax_distributed.global_state
    if state.client is None or state.num_processes == 1:
        return
    keys = f"{KEYS}same/{next(_rounds)}/"
    me, count = state.process_id, state.num_processes
    agree(state.client, settings, me=me, count=count, keys=keys, timeout_s=_AGREE_S)


def _end_on_abort(state: Any) -> contextlib.ExitStack:
    """Until it is closed, an abort of this process is LOST as well, with a line.

    When process 0 is gone JAX aborts the others, at the same moment as our watch sees it; which of the two is
    first is chance.
    """
    who = f"{state.process_id} of {state.num_processes}"

    def end() -> None:
        try:
            socket.create_connection(split_address(state.coordinator_address), timeout=1.0).close()
            _say(f"JAX aborted this process ({who}) while process 0 is there; the lines before say why")
        except OSError:
            _say(f"process 0 is gone; this one ({who}) ends with it")
        _exit(LOST)

    return on_abort(end)


def _end_for(error: BaseException, lost_timeout_s: float) -> NoReturn:
    line = user_line(error)
    if line is not None and not _is_of_the_runtime(error):
        end_all(line, MENDABLE)
    if isinstance(error, KeyboardInterrupt):
        end_all("interrupted", INTERRUPTED)
    if _is_of_the_runtime(error) and "RESOURCE_EXHAUSTED" not in str(error):
        # Most often another process is gone, and soon the watch knows which, and ends this one.
        time.sleep(lost_timeout_s + _FAREWELL_S)
    if line is not None:
        end_all(line, MENDABLE)
    traceback.print_exception(error)
    end_all(f"{type(error).__name__}: {error}".splitlines()[0], 1)


def _is_of_the_runtime(error: BaseException | None) -> bool:
    """Whether it comes from an operation that other processes take part in."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Watch:
    """What the thread of each process does: gives signs of life, and waits for a notice that all end."""

    def __init__(self, state: Any, lost_timeout_s: float, closing: threading.Event):
        self._client, self._me, self._count = state.client, state.process_id, state.num_processes
        self._timeout_s, self._closing = lost_timeout_s, closing
        self._interval_s = min(1.0, lost_timeout_s / 6)
        self._is_done = False
        self._last: dict[int, tuple[str, float]] = {i: ("", time.monotonic()) for i in range(1, self._count)}

    def run(self) -> None:
        """Returns when the block that is watched is left."""
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
                if "DEADLINE_EXCEEDED" in str(error):  # as always
                    continue
                if not self._closing.is_set():
                    _say(f"process 0 is gone; this one ({self._me} of {self._count}) ends with it")
                    _exit(LOST)
                return
            if not self._closing.is_set():
                self._obey(json.loads(notice))

    def wait_for_all(self) -> None:
        """Returns when this process and all others have done their work; meanwhile the watch goes on."""
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
        lost = [
            process
            for process, (beat, when) in self._last.items()
            if beat != _DONE and now - when > self._timeout_s
        ]
        if lost:
            names = ", ".join(map(str, lost))
            line = f"no sign of life from process {names} for {self._timeout_s:g} s (run.lost_timeout_s)"
            _tell(self._client, json.dumps({"process": None, "line": line, "code": LOST, "lost": lost}))

    def _obey(self, notice: dict[str, Any]) -> None:
        """Prints why all end, and ends this process."""
        process = notice["process"]
        if process == self._me:
            return  # end_all is at work
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_SEEN}{self._me}", "")
        if not _ENDING.acquire(blocking=False):
            return  # end_all is at work here too, with a line that says more
        failed = "" if process is None else f"process {process} of {self._count} failed: "
        _say(f"{failed}{notice['line']}; this process ({self._me}) ends too")
        _farewell(self._client, lost=tuple(notice.get("lost", ())))
        _exit(notice["code"])
