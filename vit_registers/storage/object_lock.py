"""The lock of a run folder in gs://: an object that one program can create, and that it writes every 10 s.

A program that is killed leaves its object behind. Another one takes it over if the holder was a process of
this machine that has ended, or if the object has not been written for LOST_S. All writes name the generation
that they replace, so that two programs cannot both take it. No clocks of different machines are compared.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from etils import epath

from vit_registers.errors import CheckpointError
from vit_registers.status import say
from vit_registers.storage import objects

BEAT_S = 10.0  # between two writes of a lock
LOST_S = 90.0  # without a write until a lock counts as left behind; longer than gcsfs tries to reach a server
_POLL_S = 2.0

_seen: dict[str, tuple[str, float]] = {}  # of each lock of others: its generation, and since when it is known


def _machine() -> str:
    """A name of this start of this machine, and of the processes that can be seen from here."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}-{uuid.getnode()}"


def _started(pid: int) -> str | None:
    """The start time of a process, as a later one may have its number; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            return "unknown"  # there is no /proc
        return None
    return None if fields[0] in "ZX" else fields[19]


def _read(path: epath.Path) -> tuple[dict[str, Any], str] | None:
    """(the holder, the generation) of a lock; None if there is none. Raises OSError."""
    for _ in range(10):  # it may be written between the two requests
        if (found := objects.find_object(path)) is None:
            return None
        try:
            data = objects.read_object(path)
        except FileNotFoundError:
            return None
        if (again := objects.find_object(path)) is not None and again.generation == found.generation:
            break
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    return (value if isinstance(value, dict) else {}), found.generation


def _is_left(path: epath.Path, holder: dict[str, Any], generation: str) -> bool:
    """Whether the holder of a lock has ended, as far as is known."""
    seen, since = _seen.get(str(path), (None, 0.0))
    if seen != generation:
        since = time.monotonic()
        _seen[str(path)] = (generation, since)
    if time.monotonic() - since > LOST_S:
        return True
    pid = holder.get("pid")
    if holder.get("machine") != _machine() or not isinstance(pid, int):
        return False
    return _started(pid) != holder.get("started")


def object_holder(path: epath.Path) -> str | None:
    """The program that holds a lock; None if there is none, or if it has ended."""
    try:
        found = _read(path)
    except OSError:
        return None
    if found is None or _is_left(path, *found):
        return None
    return _name(found[0])


def _name(holder: dict[str, Any]) -> str:
    return str(holder.get("name") or "another program")


class ObjectLock(contextlib.AbstractContextManager):
    """The lock `name` of a run folder, held until it is closed. A thread writes the object.

    If it is held, waits until the holder writes it again, then raises CheckpointError, or takes it over if
    the holder is gone. `witness` is a file of the folder that is there as long as the folder is.
    """

    def __init__(self, run: epath.Path, name: str, *, witness: str | None = None):
        path, first, is_said = run / name, None, False
        while not self._take(path):
            found = self._ask(path)
            first = first or found
            if found is not None and first is not None and found[1] != first[1]:
                raise CheckpointError(
                    f"{run} is in use by {_name(found[0])}. Wait until it ends, or use another folder"
                )
            if found is not None and not is_said:
                say(f"{run} is locked by {_name(found[0])}; waiting up to {LOST_S:.0f} s for a sign of life")
                is_said = True
            time.sleep(_POLL_S)
        self._run, self._witness = run, witness

    @classmethod
    def take(cls, path: epath.Path) -> "ObjectLock | None":
        """The lock at `path`, None if another program holds it. Does not wait. Raises OSError."""
        lock = cls.__new__(cls)
        lock._run, lock._witness = path.parent, None
        return lock if lock._take(path) else None

    @staticmethod
    def _ask(path: epath.Path) -> tuple[dict[str, Any], str] | None:
        try:
            return _read(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error

    def _take(self, path: epath.Path) -> bool:
        """Creates the lock, or takes over one that is left behind. False: another program has it."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._holder = {
            "name": f"process {os.getpid()} on {socket.gethostname()} (since {since})",
            "id": uuid.uuid4().hex,
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self._path = path
        found = self._ask(path)
        if found is not None and not _is_left(path, *found):
            return False
        if not self._write("0" if found is None else found[1]):
            return False
        _seen.pop(str(path), None)
        self._is_lost, self._done = False, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return True

    def _write(self, generation: str) -> bool:
        """Writes the lock in place of `generation`. Returns False if another program was faster."""
        try:
            self._generation = objects.write_object(
                self._path, json.dumps(self._holder).encode(), generation=generation
            )
        except FileExistsError:
            found = self._ask(self._path)  # our own write may have been answered late, and tried again
            if found is None or found[0].get("id") != self._holder["id"]:
                return False
            self._generation = found[1]
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be written: {error.strerror}") from error
        return True

    def _beat(self) -> None:
        while not self._done.wait(BEAT_S):
            with contextlib.suppress(CheckpointError):  # the store does not answer: again
                if not self._write(self._generation):
                    self._is_lost = True
                    return

    def check(self) -> None:
        """Raises CheckpointError if another program has taken the folder, or if it was removed.

        If only the lock was removed, it is created again.
        """
        try:
            found = _read(self._path)
            if found is None and not self._is_lost and self._is_folder_there() and self._write("0"):
                return
        except OSError:
            return  # the store does not answer; the save will say so
        if found is not None and found[0].get("id") == self._holder["id"]:
            return
        if found is not None:
            raise CheckpointError(
                f"{self._run} was taken over by {_name(found[0])}, as this run could not write its lock for "
                f"more than {LOST_S:.0f} s, so nothing more is saved here"
            )
        raise CheckpointError(
            f"{self._run} was removed or emptied while this run was writing in it, so nothing more can be "
            "saved there"
        )

    def _is_folder_there(self) -> bool:
        return self._witness is None or objects.find_object(self._run / self._witness) is not None

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the lock, if it is still ours."""
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            found = _read(self._path)
            if found is not None and found[0].get("id") == self._holder["id"]:
                objects.remove_objects(self._path)
