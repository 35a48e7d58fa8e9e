"""Features on disk: one array file each, written batch by batch, with their provenance. No JAX.

A folder has `provenance.json`, `progress.json` and one .npy file per feature. The header of a file has the
final shape from the start, and the file grows by appending, so memory does not grow with the data set and a
stopped run resumes. Another provenance has another folder.

progress.json has the number of images of each feature, and under "files" their bytes and SHA-256. A feature
that differs from these is computed again.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vit_registers.analysis.file_names import file_name
from vit_registers.digests import prefix_hash, text_digest
from vit_registers.errors import DataError
from vit_registers.strict_json import dumps, write_json, write_text

VALID = "is_valid"  # the feature that is False for images that could not be decoded
_FILES = "files"  # in progress.json, beside the numbers of images: [bytes, SHA-256] by feature
_BLOCK_BYTES = 1 << 20
_SAVE_EVERY_S = 5.0  # a killed process loses the images since the last save; each save waits for the disk


class Work(NamedTuple):
    """Features that a store lacks."""

    counts: dict[str, int]  # of each, the number of images that it is kept of
    first: int  # the first image that one of them lacks

    @property
    def stop(self) -> int:
        """The number of images after which all are complete."""
        return max(self.counts.values())


class Store:
    """The features of one model on one set of images."""

    def __init__(
        self, root: Path, name: str, provenance: Mapping[str, Any], limits: Mapping[str, int] | None = None
    ) -> None:
        """Opens or creates root/<name>-<digest of provenance>.

        `limits` are numbers of images, for features that are kept of the first images only. Features are
        discarded if provenance.json differs. Raises DataError if the folder cannot be written to.
        """
        text = dumps(provenance, sort_keys=True)
        self.folder = root / f"{file_name(name)}-{text_digest(text)[:12]}"
        self.provenance = dict(provenance)
        self.num_images = int(provenance["num_images"])
        self._limits = dict(limits or {})
        self._checked: dict[str, int] = {}  # the number of images that were compared with the digest
        # By feature, for each image that `read` returns; see finite.py.
        self.is_flawed: dict[str, np.ndarray] = {}
        path, progress = self.folder / "provenance.json", self.folder / "progress.json"
        with _disk_errors(self.folder, "cannot be used"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and progress.is_file() and path.read_bytes() != f"{text}\n".encode():
                print(f"{path} is not what was written: all features are computed again", file=sys.stderr)
                progress.unlink()
        with _disk_errors(path, "cannot be written"):
            write_text(path, f"{text}\n")

    def missing(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names` that are not complete. Damaged ones are reported on stderr."""
        return tuple(name for name in names if self._num_done(name) < self.count(name))

    def lacking(self, names: Iterable[str]) -> Work | None:
        """The features among `names` that are not complete, as `missing`; None if all are."""
        lacking = self.missing(names)
        if not lacking:
            return None
        first = min(self._num_done(name) for name in lacking)
        return Work({name: self.count(name) for name in lacking}, first)

    def count(self, name: str) -> int:
        """The number of images that the feature is kept of, including broken ones."""
        return min(self.num_images, self._limits.get(name, self.num_images))

    def read(self, name: str) -> np.ndarray:
        """The feature, [images, ...], of images that could be decoded; a memory map if all could be."""
        values = self._open(name)
        is_valid = np.asarray(self._open(VALID))[: len(values)]
        return values if is_valid.all() else values[is_valid]

    def image_numbers(self) -> np.ndarray:
        """The number in the data set of each image that `read` returns, int32."""
        return np.flatnonzero(self._open(VALID)).astype(np.int32)

    def num_read(self) -> int:
        """The number of images that could be decoded, which `read` returns."""
        return int(np.count_nonzero(self._open(VALID)))

    @contextlib.contextmanager
    def writer(self, names: tuple[str, ...]) -> Iterator["Writer"]:
        """A Writer of the features `names`, from the first image that one of them lacks."""
        writer = Writer(self, names, min(self._num_done(name) for name in names))
        try:
            yield writer
        finally:
            writer.close()

    def _open(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path} cannot be read ({error}): delete {self.folder} and start again"
            ) from None

    def _num_done(self, name: str) -> int:
        progress = self._progress()
        done = progress.get(name, 0)
        if done and self._checked.get(name) != done:
            if reason := self._damage(name, done, *progress[_FILES].get(name, (0, ""))):
                path = self.folder / f"{name}.npy"
                print(f"{path} is damaged ({reason}): {name} is computed again", file=sys.stderr)
                del progress[name]
                progress[_FILES].pop(name, None)
                self._save(progress)
                return 0
            self._checked[name] = done
        return done

    def _damage(self, name: str, done: int, num_bytes: int, digest: str) -> str | None:
        """The damage of the file with the first `done` images; None if it is intact."""
        path = self.folder / f"{name}.npy"
        if done > self.count(name):
            return f"progress.json counts {done} images of {self.count(name)}"
        if not digest:
            return "no SHA-256 was recorded"
        try:
            size = path.stat().st_size
            if size < num_bytes or (done == self.count(name) and size > num_bytes):
                return f"{size} bytes instead of {num_bytes}"
            with path.open("rb") as file:
                if prefix_hash(file, num_bytes).hexdigest() != digest:
                    return "its SHA-256 is not the one recorded"
                file.seek(0)
                shape, dtype = _read_header(file)
                row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
                if shape[0] != self.count(name) or num_bytes != file.tell() + done * row_bytes:
                    return f"it does not hold the {done} of {self.count(name)} images of progress.json"
        except OSError as error:
            return error.strerror
        return None

    def _save(self, progress: Mapping[str, Any]) -> None:
        path = self.folder / "progress.json"
        with _disk_errors(path, "cannot be written"):
            write_json(path, progress)

    def _progress(self) -> dict[str, Any]:
        """Numbers of images by feature, and the digests. Raises DataError if the file is damaged."""
        path = self.folder / "progress.json"
        try:
            progress = json.loads(path.read_text()) if path.exists() else {}
            files = progress.setdefault(_FILES, {})
            is_whole = all(type(done) is int and done >= 0 for done in (progress | {_FILES: 0}).values())
            is_whole &= all(type(size) is int and type(digest) is str for size, digest in files.values())
            if not is_whole:
                raise ValueError
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            raise DataError(f"{path} is damaged: delete {self.folder} and start again") from None
        return progress


class Writer:
    """Appends batches of features to the files of a Store."""

    def __init__(self, store: Store, names: tuple[str, ...], start: int) -> None:
        self.num_done = start
        self._store, self._names = store, names
        self._files: dict[str, BinaryIO] = {}
        self._hashes: dict[str, Any] = {}
        self._done: dict[str, int] = {}  # images that were written since the start
        self._began = self._saved_at = time.monotonic()

    def append(self, features: Mapping[str, np.ndarray]) -> None:
        """Appends a batch, [B, ...] of each name that lacks some. Raises DataError if that fails."""
        with _disk_errors(self._store.folder, "cannot be written to"):
            for name in self._names:
                room = self._store.count(name) - self.num_done
                if room <= 0:
                    continue
                values = np.ascontiguousarray(features[name][:room])
                file = self._files.get(name) or self._begin(name, values)
                file.write(values.data)
                self._hashes[name].update(values)
                self._done[name] = self.num_done + len(values)
            self.num_done += len(next(iter(features.values())))
            if time.monotonic() - self._saved_at > _SAVE_EVERY_S:
                self._save()

    def close(self) -> None:
        """Saves the features and closes all files. Raises DataError if they cannot be written."""
        try:
            with _disk_errors(self._store.folder, "cannot be written to"):
                self._save()
        finally:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()

    def _save(self) -> None:
        is_long = time.monotonic() - self._began > _SAVE_EVERY_S
        for file in self._files.values():
            file.flush()
            if is_long:  # what a power failure takes of others is found by its digest and computed again
                os.fsync(file.fileno())
        if self._done:
            progress = self._store._progress()
            progress |= self._done
            for name in self._done:
                progress[_FILES][name] = [self._files[name].tell(), self._hashes[name].hexdigest()]
            self._store._save(progress)
            self._store._checked |= self._done
        self._saved_at = time.monotonic()

    def _begin(self, name: str, values: np.ndarray) -> BinaryIO:
        """The file of a feature with its header, truncated after the last counted row."""
        path = self._store.folder / f"{name}.npy"
        file = path.open("r+b" if self.num_done else "w+b")
        self._files[name] = file
        if self.num_done:
            _read_header(file)
            size = file.tell() + self.num_done * values[:1].nbytes
        else:
            shape, dtype = (self._store.count(name), *values.shape[1:]), values.dtype
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell()
        file.seek(0)
        self._hashes[name] = prefix_hash(file, size)
        file.seek(size)
        file.truncate()
        return file


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of a .npy file of this module; the file position is then at the values."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


@contextlib.contextmanager
def _disk_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} {what}: {error.strerror}") from None
