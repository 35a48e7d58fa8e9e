"""Features on disk: one array file for each, filled batch by batch, with what they were made of. No JAX.

A folder holds `provenance.json`, `progress.json` and one .npy file per feature. A file is of its full size in
its header from the start and grows by appending, so that memory does not grow with the data set, and a run
that was stopped goes on where progress.json says. A folder of another provenance is another folder.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vit_registers.errors import DataError
from vit_registers.strict_json import dumps

VALID = "is_valid"  # the feature that is False for images that could not be decoded


class Store:
    """The features of one model on one set of images."""

    def __init__(
        self, root: Path, name: str, provenance: Mapping[str, Any], limits: Mapping[str, int] | None = None
    ) -> None:
        """Opens root/<name>-<digest of provenance>, or makes it.

        `limits` are numbers of images, for features that are kept of the first ones only.
        """
        text = dumps(provenance, sort_keys=True)
        self.folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.provenance = dict(provenance)
        self.num_images = int(provenance["num_images"])
        self._limits = dict(limits or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "provenance.json", text + "\n")

    def missing(self, names: Iterator[str] | tuple[str, ...]) -> tuple[str, ...]:
        """Those of `names` that are not complete."""
        done = self._progress()
        return tuple(name for name in names if done.get(name, 0) < self.count(name))

    def count(self, name: str) -> int:
        """How many images the feature is kept of, broken ones included."""
        return min(self.num_images, self._limits.get(name, self.num_images))

    def read(self, name: str) -> np.ndarray:
        """The feature, [images, ...], without the images that could not be decoded.

        It is memory-mapped, and copied only where there are such images.
        """
        values = self._open(name)
        is_valid = np.asarray(self._open(VALID))[: len(values)]
        return values if is_valid.all() else values[is_valid]

    def num_read(self) -> int:
        """How many images `read` gives: those that could be decoded."""
        return int(np.count_nonzero(self._open(VALID)))

    @contextlib.contextmanager
    def writer(self, names: tuple[str, ...]) -> Iterator["Writer"]:
        """What features are appended with; it begins where all of `names` have arrived."""
        done = self._progress()
        start = min(done.get(name, 0) for name in names)
        writer = Writer(self, names, start)
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

    def _progress(self) -> dict[str, int]:
        path = self.folder / "progress.json"
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except ValueError:
            raise DataError(f"{path} is damaged: delete {self.folder} and start again") from None


class Writer:
    """Appends batches of features to the files of a Store."""

    def __init__(self, store: Store, names: tuple[str, ...], start: int) -> None:
        self.num_done = start
        self._store, self._names = store, names
        self._files: dict[str, BinaryIO] = {}

    def append(self, features: Mapping[str, np.ndarray]) -> None:
        """One batch, [B, ...] of each name. Raises DataError where it cannot be written."""
        try:
            done = self._store._progress()
            for name in self._names:
                wanted = self._store.count(name) - self.num_done
                if wanted <= 0:
                    continue
                values = np.ascontiguousarray(features[name][:wanted])
                done[name] = self.num_done + len(values)
                file = self._files.get(name) or self._begin(name, values)
                file.write(values)
                file.flush()
            self.num_done += len(features[self._names[0]])
            _replace(self._store.folder / "progress.json", dumps(done) + "\n")
        except OSError as error:
            raise DataError(f"{self._store.folder} cannot be written to: {error.strerror}") from None

    def close(self) -> None:
        """Closes all files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()

    def _begin(self, name: str, values: np.ndarray) -> BinaryIO:
        """The file of a feature with its header, cut after the last row that counts."""
        path = self._store.folder / f"{name}.npy"
        file = path.open("r+b" if self.num_done else "wb")
        self._files[name] = file
        if self.num_done:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            row_bytes = values[:1].nbytes
            file.seek(file.tell() + self.num_done * row_bytes)
            file.truncate()
        else:
            shape = (self._store.count(name), *values.shape[1:])
            header = {
                "descr": np.lib.format.dtype_to_descr(values.dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
        return file


def _replace(path: Path, text: str) -> None:
    """Writes the file at once: after a kill it has the old text or the new one."""
    try:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
