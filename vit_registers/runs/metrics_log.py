"""Reads RUN/metrics.jsonl as records. Imports no JAX."""

import json
from typing import Any, NamedTuple

from etils import epath

from vit_registers.errors import DataError
from vit_registers.storage.files import read_file

FILE = "metrics.jsonl"
_BEGINNING = b'{"step"'  # of all lines of MetricWriter


class Records(NamedTuple):
    """The contents of a metrics.jsonl."""

    records: list[dict[str, Any]]  # in the order of the file; each has an int "step"
    damage: str | None  # a text that names the lines that are left out


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The record of a line, a JSON object of numbers with a step. None if the line is not a record."""
    try:
        record = json.loads(line.decode())  # json.loads guesses the encoding of bytes
    except (ValueError, RecursionError):  # UnicodeDecodeError is one
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    integers = [value for value in record.values() if value is not None and type(value) is not float]
    # Not every int of JSON has a float.
    return record if all(type(value) is int and abs(value) < 2**63 for value in integers) else None


def read_records(run: epath.Path) -> Records:
    """The records of RUN/metrics.jsonl; none if the file does not exist.

    An incomplete last line, as a killed process leaves, is ignored. `damage` counts other lines that are not
    records. Raises DataError if the file cannot be read.
    """
    path = run / FILE
    try:
        *lines, last = read_file(path).split(b"\n")
    except FileNotFoundError:
        return Records([], None)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    parsed = [parse_record(line) for line in lines]
    records = [record for record in parsed if record is not None]
    wrong = [number for number, record in enumerate(parsed, start=1) if record is None]
    if (record := parse_record(last)) is not None:  # complete, without the end of the line
        records.append(record)
    elif not last.startswith(_BEGINNING[: len(last)]):
        wrong.append(len(lines) + 1)
    if not wrong:
        return Records(records, None)
    which = f"line {wrong[0]} is" if len(wrong) == 1 else f"{len(wrong)} lines, the first is {wrong[0]}, are"
    return Records(records, f"{path}: {which} not a record with a step and numbers; left out")
