"""Where the run folders of a rehearsal are, and how that storage fails for a while."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tools.emulator import BUCKET, Emulator
from vit_registers.storage import objects

_INSIDE = "VIT_REGISTERS_REHEARSAL_DISK"  # set in the mount namespace of the small disk
_DISK_MIB = 256
_MOUNT = 'mount -t tmpfs -o size="$1"m rehearsal "$2" && shift 2 && exec "$@"'


class Store(Protocol):
    """A place of run folders."""

    environment: dict[str, str]  # of the processes that use it
    outages: dict[str, Callable[[float], None]]  # how it fails, by what happens; each lasts that many seconds

    def run(self, name: str) -> str:
        """The path of a run folder."""
        ...

    def copy(self, run: str, other: str) -> None:
        """Copies a run folder."""
        ...


class LocalStore:
    """A folder of a local disk. If it is a small disk of its own, it can be full for a while."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.environment: dict[str, str] = {}
        is_own_disk = os.environ.get(_INSIDE) == str(folder)
        self.outages = {"the disk is full": self._fill} if is_own_disk else {}

    def run(self, name: str) -> str:
        return str(self._folder / name)

    def copy(self, run: str, other: str) -> None:
        shutil.copytree(run, other)

    def _fill(self, seconds: float) -> None:
        deadline, filler = time.monotonic() + seconds, self._folder / "filler"
        with filler.open("wb", buffering=0) as file:
            while time.monotonic() < deadline:
                # Checkpoints that are removed meanwhile free space.
                with contextlib.suppress(OSError):
                    while file.write(bytes(1 << 16)):
                        pass
                time.sleep(0.05)
        filler.unlink()


def enter_small_disk(folder: Path, module: str) -> None:
    """Starts this program again, as `module`, with a small disk in memory at `folder`.

    The disk is in a mount namespace of its own, which ends with the program. Returns in that program, and
    where the system allows no namespaces.
    """
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if os.environ.get(_INSIDE) == str(folder) or shutil.which("unshare") is None:
        return
    mount = ["sh", "-c", _MOUNT, "sh", str(_DISK_MIB), str(folder)]
    if subprocess.run([*own, *mount, "true"], capture_output=True).returncode:
        return
    program = [sys.executable, "-m", module, f"--folder={folder.parent}", *sys.argv[1:]]
    os.execvpe(own[0], [*own, *mount, *program], os.environ | {_INSIDE: str(folder)})


class GsStore:
    """gs:// of a server on this machine (tools/emulator.py)."""

    def __init__(self, emulator: Emulator):
        self._emulator = emulator
        self._name = uuid.uuid4().hex[:8]
        self.environment = emulator.environment
        self.outages = {"the store does not answer": self._hang, "the store is gone": self._end}

    def run(self, name: str) -> str:
        return f"gs://{BUCKET}/{self._name}/{name}"

    def copy(self, run: str, other: str) -> None:
        objects.store().copy(run, other, recursive=True)

    def _hang(self, seconds: float) -> None:
        self._emulator.pause()
        time.sleep(seconds)
        self._emulator.go_on()

    def _end(self, seconds: float) -> None:
        self._emulator.stop()
        time.sleep(seconds)
        self._emulator.start()
