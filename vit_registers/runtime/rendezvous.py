"""Processes that were started with plain addresses find each other, or learn why not, in one line.

JAX's own meeting aborts the process, with a stack trace and no word of who is missing, so we meet before it
does: process 0 listens on the coordinator's port, each other one says who it is and of how many, and none
goes on before all are there. Then JAX takes over the port.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from vit_registers.errors import ConfigError

_GREETING = "vit_registers"
_ALL_HERE = "all here"
_LINE_BYTES = 1000
_RETRY_S = 0.2
_HELLO_S = 10.0  # for a caller to say who it is; anything may call at an open port


def split_address(coordinator: str) -> tuple[str, int]:
    """(host, port) of "host:port". Raises ConfigError for anything else."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator}: want host:port, as in 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def meet(coordinator: str, *, num_processes: int, process_id: int, timeout_s: float) -> None:
    """Returns on every process when all `num_processes` are there.

    Raises ConfigError, on all that are there, where the coordinator cannot be reached, the numbers do not fit
    together, or one has not come in time.
    """
    host, port = split_address(coordinator)
    if num_processes < 1:
        raise ConfigError(f"--num_processes={num_processes}: want >= 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id}: want 0 to {num_processes - 1} (--num_processes - 1)")
    deadline = time.monotonic() + timeout_s
    if process_id == 0:
        _receive(port, num_processes, deadline, timeout_s)
    else:
        _call(host, port, f"{_GREETING} {process_id} {num_processes}", deadline, timeout_s)


def agree(
    client: Any, settings: Mapping[str, Any], *, me: int, count: int, keys: str, timeout_s: float
) -> None:
    """Returns when all processes have compared what they were given with what process 0 was.

    `client` is JAX's key-value store, `keys` what the names in it begin with, which are used once. Raises
    ConfigError where this process counts others than process 0 does, or has other settings.
    """
    timeout_ms, mine = int(1000 * timeout_s), {name: repr(value) for name, value in settings.items()}
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
    data = b""
    while not data.endswith(b"\n") and len(data) < _LINE_BYTES:
        part = connection.recv(_LINE_BYTES)
        if not part:
            break
        data += part
    return data.decode(errors="replace").strip()


def _send_line(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(f"{line}\n".encode()[:_LINE_BYTES])


def _receive(port: int, num_processes: int, deadline: float, timeout_s: float) -> None:
    """Process 0's part: waits for all, then tells all how it went."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(port))
        try:
            while len(there) < num_processes - 1:
                connection = _accept(listener, deadline)
                if connection is None:
                    missing = [i for i in range(1, num_processes) if i not in there]
                    names = ", ".join(map(str, missing[:20])) + (" and more" if len(missing) > 20 else "")
                    raise ConfigError(
                        f"of {num_processes} processes, {names} did not come to port {port} of process 0 "
                        f"within {timeout_s:g} s (--connect_timeout_s)"
                    )
                stack.enter_context(connection)
                who = _who(connection)
                if who is None:
                    continue  # not one of ours
                process_id, count = who
                there.setdefault(process_id, connection)
                if count != num_processes:
                    raise ConfigError(
                        f"process {process_id} has --num_processes={count}, process 0 has {num_processes}"
                    )
                if there[process_id] is not connection or process_id == 0:
                    _send_line(connection, f"two processes have --process_id={process_id}")
                    raise ConfigError(f"two processes have --process_id={process_id}")
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


def _who(connection: socket.socket) -> tuple[int, int] | None:
    """(process_id, num_processes) as the caller has it."""
    connection.settimeout(_HELLO_S)
    try:
        greeting, process_id, count = _read_line(connection).split()
        return (int(process_id), int(count)) if greeting == _GREETING else None
    except (OSError, ValueError):
        return None


def _call(host: str, port: int, hello: str, deadline: float, timeout_s: float) -> None:
    """The part of all others: calls until process 0 answers, and waits for its word."""
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(deadline - time.monotonic(), 0.1))
            break
        except OSError as error:
            if time.monotonic() + _RETRY_S > deadline:
                reason = error.strerror or str(error)
                raise ConfigError(
                    f"--coordinator={host}:{port} cannot be reached within {timeout_s:g} s "
                    f"(--connect_timeout_s): {reason}; process 0 has to run there"
                ) from None
            time.sleep(_RETRY_S)
    with connection:
        _send_line(connection, hello)
        # Process 0 may have begun to wait as late as we gave up on it.
        connection.settimeout(max(deadline - time.monotonic(), 0.0) + timeout_s + _HELLO_S)
        try:
            answer = _read_line(connection)
        except OSError as error:
            answer = error.strerror or str(error)
    if answer != _ALL_HERE:
        raise ConfigError(answer or f"process 0 at {host}:{port} went away before all processes were there")
