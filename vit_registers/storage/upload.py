"""Copies a local folder into gs://, with progress. Objects that are there already are not sent again."""

import time
from pathlib import Path
from typing import NamedTuple

from vit_registers import status
from vit_registers.digests import file_crc32c, files_digest
from vit_registers.errors import DataError
from vit_registers.storage import objects

CHECKSUMS = "SHA256SUMS"  # in the format of sha256sum
_SAY_S = 10.0  # between two lines about the progress


class _File(NamedTuple):
    path: Path
    size: int
    crc32c: str

    def is_at(self, found: objects.Found | None) -> bool:
        return found is not None and (found.size, found.crc32c) == (self.size, self.crc32c)


def upload_folder(source: Path, target: str, *, last: str) -> None:
    """Copies the files of a local folder, without subfolders, into a folder in gs://.

    Adds SHA256SUMS, for `sha256sum --check`. The file `last` is sent after all others: where it is, all are.
    Prints progress, and at the end the numbers of files that were sent and that were there. Raises DataError
    if the target holds another file `last`, or if an object has another checksum than the file that was sent,
    and OSError for errors of the store.
    """
    there = objects.find_all(target) if objects.has_objects(target) else {}
    files = _read(source)
    files.sort(key=lambda file: file.path.name == last)
    if last in there and not files[-1].is_at(there[last]):
        raise DataError(
            f"{target} holds another data set: delete that folder, or give another --name or --data_dir"
        )
    missing = [file for file in files if not file.is_at(there.get(file.path.name))]
    _send(missing, target)
    print(f"{target}: {len(missing)} files sent, {len(files) - len(missing)} were there; checksums are equal")


def _read(source: Path) -> list[_File]:
    """The files of a folder, with their checksums, and SHA256SUMS, which is written."""
    files, sums = [], ""
    with status.waiting(f"computing checksums of {source}"):
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name != CHECKSUMS:
                files.append(_File(path, path.stat().st_size, file_crc32c(path)))
                sums += f"{files_digest([path])}  {path.name}\n"
    (source / CHECKSUMS).write_text(sums)
    return [*files, _File(source / CHECKSUMS, len(sums), file_crc32c(source / CHECKSUMS))]


def _send(files: list[_File], target: str) -> None:
    total, done, said = sum(file.size for file in files), 0, time.monotonic()
    for number, file in enumerate(files):
        line = f"uploading {file.path.name}: {number} of {len(files)} files and {done / 1e6:.0f} of "
        line += f"{total / 1e6:.0f} MB are sent"
        if status.is_live():
            status.show(line)
        elif time.monotonic() - said >= _SAY_S:
            status.say(line)
            said = time.monotonic()
        path = f"{target}/{file.path.name}"
        objects.send_file(file.path, path)
        if not file.is_at(objects.find_object(path)):
            raise DataError(f"{path} has another checksum than {file.path}: run the same command again")
        done += file.size
    status.clear()
