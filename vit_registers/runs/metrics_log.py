"""RUN/metrics.jsonl as records: its one reader. Imports no JAX."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from vit_registers.errors import DataError

FILE = "metrics.jsonl"
_BEGINNING = b'{"step"'  # of all lines that are written


class Records(NamedTuple):
    """What a metrics.jsonl holds."""

    records: list[dict[str, Any]]  # in the order in which they were written; each has an int "step"
    damage: str | None  # which lines were left out


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record of a line: a JSON object of numbers with a step. None where it is something else."""
    try:
        record = json.loads(line.decode())  # of bytes, it would guess the encoding
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(map(_is_value, record.values())) else None


def _is_value(value: Any) -> bool:
    # Not every int of JSON has a float.
    return value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)


def read_records(run: Path) -> Records:
    """The records of RUN/metrics.jsonl, none where there is no such file.

    A last line that a kill cut off is left out without a word; other lines that are no records are counted
    in `damage`. Raises DataError where the file cannot be read.
    """
    path = run / FILE
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for a writer
            raise DataError(f"{path} is not a regular file: move it away")
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Records([], None)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    parsed = [parse_record(line) for line in lines]
    records = [record for record in parsed if record is not None]
    wrong = [number for number, record in enumerate(parsed, start=1) if record is None]
    if (record := parse_record(last)) is not None:  # whole, but for its end of line
        records.append(record)
    elif not last.startswith(_BEGINNING[: len(last)]):
        wrong.append(len(lines) + 1)
    if not wrong:
        return Records(records, None)
    which = f"line {wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} lines, the first is {wrong[0]}, are"
    return Records(records, f"{path}: {which} not a record with a step and numbers; left out")
