"""Objects in gs://, through gcsfs. All errors are StoreError, or FileNotFoundError and FileExistsError.

gcsfs tries again for about half a minute if a server is busy or does not answer.
"""

import contextlib
import errno
import functools
import json
import logging
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from vit_registers.errors import UserError, require_extra

Name = str | os.PathLike[str]
_SILENCE_S = 60.0  # of a server, before a request is tried again
_BORDER = "vit-registers-7f3b9c"  # between the parts of a request


class StoreError(OSError):
    """An error of the object store; `strerror` is one line that says what to do."""


class Found(NamedTuple):
    """An object: its size in bytes, its CRC32C in base64 where the store has one, and its generation."""

    size: int
    crc32c: str | None
    generation: str


@functools.cache
def store() -> Any:
    """The file system of gcsfs, which epath and Orbax use too. Raises MissingPackageError."""
    require_extra("gcs", "gcsfs", what="a path in gs://", otherwise="mount the bucket")
    import aiohttp
    import fsspec
    import fsspec.config

    settings = fsspec.config.conf.setdefault("gcs", {})
    settings["use_listings_cache"] = False  # it would hide the files of other processes
    settings["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=_SILENCE_S)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs errors that it also raises
    return fsspec.filesystem("gcs", finalize_on_close=True)


@contextlib.contextmanager
def _answered(path: Name) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path)) from error
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from error
    except Exception as error:  # of gcsfs, aiohttp, requests and google.auth
        raise StoreError(errno.EIO, _line(error), os.fspath(path)) from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    code = getattr(error, "code", None)
    if str(code) == "401":
        return "the credentials are missing or expired: gcloud auth application-default login"
    if str(code) == "403" or text.startswith("Forbidden"):
        return f"permission denied: grant roles/storage.objectUser on the bucket ({text})"
    return f"the store does not answer ({text})" if code is None else f"the store answers {code} ({text})"


def _parts(path: Name) -> tuple[str, str]:
    bucket, _, key = os.fspath(path).removeprefix("gs://").partition("/")
    return bucket, key.strip("/")


def read_object(path: Name, *, last_bytes: int | None = None) -> bytes:
    """The contents of an object, or only the end of it."""
    with _answered(path):
        return store().cat_file(os.fspath(path), start=None if last_bytes is None else -last_bytes)


def write_object(path: Name, data: bytes, *, generation: str | None = None) -> str:
    """Writes an object as a whole, and returns its generation.

    With `generation`, only if the object has that one; "0" means that there must be no object. Raises
    FileExistsError if it has another one, and StoreError if there is no such bucket.
    """
    bucket, key = _parts(path)
    place = store().base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
    about = f"--{_BORDER}\nContent-Type: application/json; charset=UTF-8\n\n{json.dumps({'name': key})}\n"
    head = f"{about}--{_BORDER}\nContent-Type: application/octet-stream\n\n".encode()
    try:
        with _answered(path):
            made = store().call(
                "POST",
                place,
                bucket,
                uploadType="multipart",
                ifGenerationMatch=generation,
                headers={"Content-Type": f'multipart/related; boundary="{_BORDER}"'},
                data=head + data + f"\n--{_BORDER}--".encode(),
                json_out=True,
            )
    except FileNotFoundError as error:
        raise StoreError(errno.ENOENT, f"there is no bucket gs://{bucket}", os.fspath(path)) from error
    return str(made["generation"])


def send_file(file: Name, path: Name) -> None:
    """Writes a local file as an object, in parts if it is large. Raises StoreError."""
    with _answered(path):
        store().put_file(os.fspath(file), os.fspath(path))


def find_object(path: Name) -> Found | None:
    """The object at a path; None if there is none."""
    bucket, key = _parts(path)
    try:
        with _answered(path):
            return _found(store().call("GET", "b/{}/o/{}", bucket, key, json_out=True))
    except FileNotFoundError:
        return None


def _found(answer: dict[str, Any]) -> Found:
    return Found(int(answer["size"]), answer.get("crc32c"), str(answer.get("generation")))


def has_objects(path: Name) -> bool:
    """Whether there are objects below a path. Raises StoreError if there is no such bucket."""
    bucket, key = _parts(path)
    prefix = f"{key}/" if key else None
    try:
        with _answered(path):
            answer = store().call("GET", "b/{}/o", bucket, prefix=prefix, maxResults=1, json_out=True)
    except FileNotFoundError as error:
        raise StoreError(errno.ENOENT, f"there is no bucket gs://{bucket}", os.fspath(path)) from error
    return bool(answer.get("items"))


def list_names(path: Name) -> list[str]:
    """The names of the objects and folders in a folder; none if there is no such folder."""
    whole = os.fspath(path).removeprefix("gs://").rstrip("/")
    try:
        with _answered(path):
            listed = store().ls(whole, detail=False)
    except FileNotFoundError:
        return []
    # An object with the name of the folder and a slash at its end marks a folder in the web console.
    return sorted(name.rstrip("/").rpartition("/")[2] for name in listed if name.rstrip("/") != whole)


def find_all(path: Name) -> dict[str, Found]:
    """All objects below a folder, by their path in it."""
    whole = os.fspath(path).removeprefix("gs://").rstrip("/")
    with _answered(path):
        listed = store().find(whole, detail=True)
    return {
        name.removeprefix(f"{whole}/"): _found(answer)
        for name, answer in sorted(listed.items())
        if answer["type"] == "file" and not name.endswith("/")
    }


def changed_s(path: Name) -> float:
    """The time of the last change, in seconds since 1970."""
    with _answered(path):
        return store().info(os.fspath(path))["mtime"].timestamp()


def copy_object(path: Name, target: Name) -> None:
    """Copies an object in the store."""
    with _answered(path):
        store().cp_file(os.fspath(path), os.fspath(target))


def remove_objects(path: Name) -> None:
    """Removes an object, or a folder with its contents. Raises FileNotFoundError if there is neither."""
    with _answered(path):
        store().rm(os.fspath(path).rstrip("/"), recursive=True)
