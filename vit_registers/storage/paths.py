"""Paths of run folders: on this machine, or gs://BUCKET/FOLDER."""

import contextlib
import os
import re

from etils import epath

from vit_registers.errors import ConfigError

GS = "gs://"
_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]*):/")
_BUCKET = re.compile("gs://[a-z0-9][a-z0-9._-]+(/.*)?", re.DOTALL)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the path is in an object store."""
    return os.fspath(path).startswith(GS)


def check_scheme(path: str, where: str) -> None:
    """Raises ConfigError, which names `where`, for an object store other than gs://, and for no bucket.

    Orbax cannot write to s3://.
    """
    scheme = _SCHEME.match(path)
    if scheme is None or _BUCKET.fullmatch(path):
        return
    if scheme[1] == "gs":
        raise ConfigError(f"{where}={path} has no bucket: give gs://BUCKET/FOLDER")
    if path.startswith(f"{scheme[0]}/"):
        raise ConfigError(
            f"{where}={path}: {scheme[1]}:// is not supported, only local folders and gs://: mount it, "
            "or copy the folder"
        )


def folder(path: str | os.PathLike[str]) -> epath.Path:
    """The path of a run folder or of the folder of a sweep, with ~ expanded."""
    text = os.fspath(path)
    return epath.Path(text.rstrip("/")) if is_remote(text) else epath.Path(os.path.expanduser(text))


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The same as an absolute path, as Orbax requires."""
    return folder(path) if is_remote(path) else epath.Path(os.path.abspath(folder(path)))


def real_path(path: str | os.PathLike[str]) -> epath.Path:
    """The absolute path without local links."""
    return folder(path) if is_remote(path) else epath.Path(os.path.realpath(folder(path)))


def is_same_place(one: str, other: str) -> bool:
    """Whether two paths lead to the same file or folder, which need not exist."""
    with contextlib.suppress(OSError):
        if not is_remote(one) and not is_remote(other):
            return os.path.samefile(folder(one), folder(other))
    return real_path(one) == real_path(other)
