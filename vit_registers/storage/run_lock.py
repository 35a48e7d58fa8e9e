"""The lock of a run folder: only one program at a time may write there.

On this machine it is a lock of the kernel (flock) on RUN/.writer.lock, which is released when the process
ends, even if it is killed. The file names the process that holds it. See object_lock.py for gs://.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator

from etils import epath

from vit_registers.errors import CheckpointError
from vit_registers.status import say
from vit_registers.storage import object_lock
from vit_registers.storage.files import OpenFolder, is_same
from vit_registers.storage.object_lock import ObjectLock
from vit_registers.storage.paths import is_remote

FILE = ".writer.lock"
_WITNESS = "config.json"  # a run writes it before anything else
_PAUSES_S = (0.05, 0.1)  # between tries, as lock_holder() holds the lock for a moment
# Errors of flock on file systems without locks.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def try_lock(file: int, path: epath.Path) -> bool:
    """Locks an open file. Returns False if another process holds the lock.

    If the file system has no locks, prints a line and returns True. Raises CheckpointError for other errors.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause_s is not None:
                time.sleep(pause_s)
            continue
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise CheckpointError(f"{path} cannot be locked: {error.strerror}") from error
            say(
                f"{path.parent} is not protected against a second program: its file system has no locks "
                f"({error.strerror})"
            )
        return True
    return False


class RunLock(contextlib.AbstractContextManager):
    """The lock of a run folder, held until it is closed or the process ends. A context manager.

    Child processes do not hold it, except forks without exec. Raises CheckpointError if another program holds
    it, or if the file cannot be created.
    """

    def __init__(self, run: epath.Path):
        self._run, self._path = run, run / FILE
        self._file = self._lock()
        self._folder = OpenFolder(run)

    def _lock(self) -> int:
        while True:
            try:
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise CheckpointError(f"{self._path} cannot be written: {error.strerror}") from error
            with contextlib.ExitStack() as unless_locked:
                unless_locked.callback(os.close, file)
                if not try_lock(file, self._path):
                    raise CheckpointError(
                        f"{self._run} is in use by {_name(file)}. Wait until it ends, or use another folder"
                    )
                if not is_same(file, self._path):  # the last holder has removed its file in the meantime
                    continue
                with contextlib.suppress(OSError):  # on a full disk only the name is missing
                    since = time.strftime("%Y-%m-%d %H:%M:%S")
                    name = f"process {os.getpid()} on {socket.gethostname()} (since {since})\n"
                    os.ftruncate(file, 0)
                    os.write(file, name.encode())
                unless_locked.pop_all()
                return file

    def check(self) -> None:
        """Raises CheckpointError if the folder was removed, renamed, replaced or emptied.

        If only the lock file was removed, it is created and locked again.
        """
        if self._folder.is_there():
            if is_same(self._file, self._path):
                return
            if os.path.exists(self._run / _WITNESS):
                lost, self._file = self._file, self._lock()
                os.close(lost)
                return
        raise CheckpointError(
            f"{self._run} was removed, renamed, replaced or emptied while this run was writing in it, so "
            "nothing more can be saved there. If it has another name now, the same command with that "
            "--workdir resumes from its last checkpoint"
        )

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock and removes its file."""
        folder = self._folder.file  # not the path, which may lead to another folder now
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(FILE, dir_fd=folder), os.fstat(self._file)):
                os.unlink(FILE, dir_fd=folder)
        os.close(self._file)
        self._folder.close()


def lock_holder(run: epath.Path, name: str = FILE) -> str | None:
    """The program that holds the lock on a file of a run folder, None if there is none. Creates no file."""
    if is_remote(run):
        return object_lock.object_holder(run / name)
    try:
        file = os.open(run / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _name(file)
    except OSError:  # no locks here
        return None
    finally:
        os.close(file)
    return None


def _name(file: int) -> str:
    with contextlib.suppress(OSError):
        if name := os.pread(file, 500, 0).decode(errors="replace").partition("\n")[0].strip():
            return name
    return "another program"


Lock = RunLock | ObjectLock


def lock_run(run: epath.Path) -> Lock:
    """The lock of a run folder, held until it is closed or the process ends. Raises CheckpointError."""
    return ObjectLock(run, FILE, witness=_WITNESS) if is_remote(run) else RunLock(run)


@contextlib.contextmanager
def sweep_lock(folder: epath.Path, name: str) -> Iterator[int | None]:
    """A context that holds the lock `name` of a sweep in a run folder; None if another program uses it.

    Else it is a descriptor to inherit: processes that have it hold the lock too, until all of them have
    closed it or ended. It is therefore only closed here, not unlocked. The lock of an object is not
    inherited, and the descriptor then leads nowhere; a training takes the lock of its run folder itself.
    Raises OSError.
    """
    path = folder / name
    if is_remote(folder):
        lock = ObjectLock.take(path) if lock_holder(folder) is None else None
        if lock is None:
            yield None
            return
        with lock, open(os.devnull, "ab") as nowhere:
            yield nowhere.fileno()
        return
    os.makedirs(folder, exist_ok=True)
    with open(path, "a") as file:
        if not try_lock(file.fileno(), path) or lock_holder(folder) is not None:
            yield None
        else:
            os.ftruncate(file.fileno(), 0)
            yield file.fileno()
