"""How the processes of a job meet, and compare their settings.

If a process is missing, JAX aborts the others with a stack trace that does not name it. So the processes meet
before JAX is initialized: process 0 listens on the coordinator's port, each other process sends its number
and the number of processes, and all wait until all have connected. Then JAX takes over the port. A process
that cannot start, as after a misspelt setting, sends its error instead, and all of them end.
"""

import contextlib
import itertools
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from jax._src import distributed as jax_distributed  # for its key-value store, which has no public name

from vit_registers.errors import ConfigError

KEYS = "vit_registers/"  # the prefix of all keys in the key-value store
_GREETING = "vit_registers"
_ALL_HERE = "all here"
_LINE_BYTES = 1000
_RETRY_S = 0.2
_HELLO_S = 10.0  # the time for a caller to send its number; any program may connect to an open port
_TELL_S = 60.0  # the time in which a process that cannot start waits for the others, to tell them
_AGREE_S = 3600.0  # the time for all processes to open their data, which takes minutes for large data sets
_rounds = itertools.count()  # of require_same; the same on all processes


def key_value_store() -> Any:
    """JAX's store of strings that all processes of a job share; None if this process is alone."""
    return jax_distributed.global_state.client


def is_alone() -> bool:
    """Whether this process is the only one of its job."""
    return key_value_store() is None or jax_distributed.global_state.num_processes == 1


def split_address(coordinator: str) -> tuple[str, int]:
    """(host, port) of "host:port". Raises ConfigError for anything else."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator}: must be host:port, as in 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def meet(coordinator: str, *, num_processes: int, process_id: int, timeout_s: float) -> None:
    """Returns on every process when all `num_processes` have connected.

    Raises ConfigError, on all connected processes, if the coordinator cannot be reached, if the numbers of
    the processes contradict each other, or if a process has not connected in time.
    """
    host, port = split_address(coordinator)
    if num_processes < 1:
        raise ConfigError(f"--num_processes={num_processes}: must be >= 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id}: must be 0 to {num_processes - 1} (--num_processes - 1)"
        )
    deadline = time.monotonic() + timeout_s
    if process_id == 0:
        _receive(port, num_processes, deadline, timeout_s)
    else:
        _call(host, port, f"{_GREETING} {process_id} {num_processes}", deadline, timeout_s)


def refuse(coordinator: str, *, num_processes: int, process_id: int, line: str) -> None:
    """Tells the processes that call, or are about to call, `meet` that this one ends, and why.

    Returns when they know it, or after a minute.
    """
    deadline = time.monotonic() + _TELL_S
    with contextlib.suppress(ConfigError):
        host, port = split_address(coordinator)
        if process_id == 0:
            _receive(port, num_processes, deadline, _TELL_S, failed=_failure(0, num_processes, line))
        else:
            _call(host, port, f"{_GREETING} {process_id} {num_processes} {line}", deadline, _TELL_S)


def require_same(settings: Mapping[str, Any]) -> None:
    """Returns when all processes, each of which has to call it, have compared `settings` with process 0.

    Raises ConfigError on a process with other settings, or another number of processes. Call it in the block
    of distributed.together, which ends the wait if a process fails before its call.
    """
    if is_alone():
        return
    state, client = jax_distributed.global_state, key_value_store()
    me, count, keys = state.process_id, state.num_processes, f"{KEYS}same/{next(_rounds)}/"
    timeout_ms, mine = int(1000 * _AGREE_S), {name: repr(value) for name, value in settings.items()}
    if me == 0:
        client.key_value_set(f"{keys}job", json.dumps([count, mine]))
        for other in range(1, count):
            client.blocking_key_value_get(f"{keys}agreed/{other}", timeout_ms)
        return
    there, theirs = json.loads(client.blocking_key_value_get(f"{keys}job", timeout_ms))
    if there != count:
        raise ConfigError(f"this job has {count} processes, but {there} for process 0")
    differing = [
        f"{name} ({mine.get(name)} on process {me}, {theirs.get(name)} on process 0)"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if differing:
        raise ConfigError(
            f"the processes of this job have different settings or data: {'; '.join(differing)}. "
            "Start all of them with one command, on the same data"
        )
    client.key_value_set(f"{keys}agreed/{me}", "")


def _listener(port: int) -> socket.socket:
    is_dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=is_dual)
    except OSError as error:
        raise ConfigError(f"--coordinator: port {port} cannot be listened on: {error.strerror}") from None


def _read_line(connection: socket.socket) -> str:
    with connection.makefile("rb") as file:
        return file.readline(_LINE_BYTES).decode(errors="replace").strip()


def _send_line(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(f"{line}\n".encode()[:_LINE_BYTES])


def _receive(
    port: int, num_processes: int, deadline: float, timeout_s: float, *, failed: str | None = None
) -> None:
    """The part of process 0: waits for all, then sends the result to all.

    `failed` is the error with which this process ends.
    """
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(port))
        try:
            while len(there) < num_processes - 1:
                connection = _accept(listener, deadline)
                if connection is None and failed is not None:
                    raise ConfigError(failed)
                if connection is None:
                    missing = [i for i in range(1, num_processes) if i not in there]
                    names = ", ".join(map(str, missing[:20])) + (" and more" if len(missing) > 20 else "")
                    raise ConfigError(
                        f"of {num_processes} processes, {names} did not connect to port {port} of process 0 "
                        f"within {timeout_s:g} s (--connect_timeout_s)"
                    )
                stack.enter_context(connection)
                if (who := _who(connection)) is None:
                    continue  # another program
                process_id, count, line = who
                there.setdefault(process_id, connection)
                if count != num_processes:
                    raise ConfigError(
                        f"process {process_id} has --num_processes={count}, process 0 has {num_processes}"
                    )
                if there[process_id] is not connection or process_id == 0:
                    _send_line(connection, f"two processes have --process_id={process_id}")
                    raise ConfigError(f"two processes have --process_id={process_id}")
                if line and failed is None:  # the others may be about to call
                    failed = _failure(process_id, num_processes, line)
                    deadline = min(deadline, time.monotonic() + _TELL_S)
            if failed is not None:
                raise ConfigError(failed)
        except ConfigError as error:
            for connection in there.values():
                _send_line(connection, str(error))
            raise
        for connection in there.values():
            _send_line(connection, _ALL_HERE)


def _accept(listener: socket.socket, deadline: float) -> socket.socket | None:
    listener.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None


def _failure(process_id: int, num_processes: int, line: str) -> str:
    return f"process {process_id} of {num_processes} failed: {line}"


def _who(connection: socket.socket) -> tuple[int, int, str] | None:
    """(process_id, num_processes, error or "") of the caller; None if it is another program."""
    connection.settimeout(_HELLO_S)
    try:
        greeting, process_id, count, *line = _read_line(connection).split(" ", 3)
        return (int(process_id), int(count), "".join(line)) if greeting == _GREETING else None
    except (OSError, ValueError):
        return None


def _call(host: str, port: int, hello: str, deadline: float, timeout_s: float) -> None:
    """The part of all other processes: calls until process 0 answers, and waits for the result."""
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1))
            break
        except OSError as error:
            if time.monotonic() + _RETRY_S > deadline:
                reason = error.strerror or str(error)
                raise ConfigError(
                    f"--coordinator={host}:{port} cannot be reached within {timeout_s:g} s "
                    f"(--connect_timeout_s): {reason}; process 0 must run there"
                ) from None
            time.sleep(_RETRY_S)
    with connection:
        _send_line(connection, hello)
        # process 0 may have started just before this process would have given up
        connection.settimeout(max(deadline - time.monotonic(), 0.0) + timeout_s + _HELLO_S)
        try:
            answer = _read_line(connection)
        except OSError as error:
            answer = error.strerror or str(error)
    if answer != _ALL_HERE:
        raise ConfigError(answer or f"process 0 at {host}:{port} ended before all processes had connected")
