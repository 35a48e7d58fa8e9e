"""Lists of image paths and captions: root/<split>.csv, .tsv or .jsonl. No TensorFlow."""

import csv
import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_registers.config import Data
from vit_registers.data.broken import BrokenImages
from vit_registers.data.sources.captioned import CAPTION_KEYS, Samples, captions_in
from vit_registers.data.sources.listing import printable
from vit_registers.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_PATH = "path"  # the default of data.image_key
_MAX_FIELD = 1 << 24  # bytes of a field of a table


class ListSamples(Samples):
    """The images of a list. Rows with the same path are captions of one image.

    Paths are relative to the folder of the list. Columns are data.image_key (path) and data.captions.key
    (caption). A line is cut at tabs if its file is a .tsv or its first line has any.
    """

    def __init__(self, file: Path, split: str, data: Data, broken: BrokenImages) -> None:
        """Reads the list. Rows without a caption, and images without any, are reported to `broken`.

        Raises DataError for a file that cannot be read, lacks the columns or has no image with a caption.
        """
        self._root = file.parent
        path_key, captions = data.image_key or _PATH, {}
        number, has_key = 0, False
        keys = (data.captions.key,) if data.captions.key else CAPTION_KEYS
        for number, row in _rows(file, split, broken):
            path = row.get(path_key)
            if not isinstance(path, str) or not path:
                is_column = file.suffix != ".jsonl" and path_key not in row
                place = f"{file}, line 1" if is_column else f"{file}, line {number}"
                what = f"has no '{path_key}', which holds the path of the image (data.image_key)"
                raise DataError(f"{place}: {what}; it has {', '.join(map(str, row))}")
            has_key |= any(key in row for key in keys)
            captions.setdefault(path, []).extend(captions_in(row, data.captions.key))
        for path in [path for path, found in captions.items() if not found]:
            broken.report_without_text(f"{_printable(path)} in {file}")
            del captions[path]
        if not captions:
            key = " or ".join(keys)
            cure = (
                f"{key} is empty in all of them: give data with captions"
                if has_key
                else f"set data.captions.key, which is {key}, to the column that has them"
            )
            raise DataError(f"{file} has {number} lines and no caption: {cure}")
        self._captions = list(captions.items())

    def __len__(self) -> int:
        return len(self._captions)

    def name(self, i: int) -> str:
        return _printable(self._captions[i][0])

    def image(self, i: int) -> bytes:
        try:
            return (self._root / self._captions[i][0]).read_bytes()
        except ValueError as error:  # null characters, lone surrogates
            raise OSError(errno.EINVAL, "it is not the name of a file") from error

    def captions(self, i: int) -> list[str]:
        return self._captions[i][1]


def _printable(path: str) -> str:
    return printable(path.encode("utf-8", "replace").decode("utf-8"))


def _rows(file: Path, split: str, broken: BrokenImages) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, row); what is not a row is reported to `broken`."""
    try:
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
            if file.suffix != ".jsonl":
                yield from _table_rows(file, lines)
                return
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line) if line.strip() else None
                except (ValueError, RecursionError):
                    row = line
                if isinstance(row, dict):
                    yield number, row
                elif row is not None:
                    broken.report_unread(f"{file}, line {number}", "it is not a JSON object", split=split)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None


def _table_rows(file: Path, lines: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    first = lines.readline()
    lines.seek(0)
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        delimiter = "\t" if file.suffix == ".tsv" or "\t" in first else ","
        reader = csv.DictReader(lines, delimiter=delimiter)
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{file} is not a table: {error}: write it as CSV with a line of column names"
        ) from None
    finally:
        csv.field_size_limit(limit)
