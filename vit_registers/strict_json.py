"""Writes strict JSON (RFC 8259), without NaN and infinity, which Python's json writes by default."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def as_plain(value: Any) -> Any:
    """`value` with None for every number that is not finite, at any depth of mappings and sequences.

    Mappings become dicts, tuples and arrays become lists, and scalars of numpy and JAX become Python's. Any
    other value is returned unchanged.
    """
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array or a scalar of numpy or JAX
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any, *, indent: int | None = 1, sort_keys: bool = False) -> str:
    """The JSON text of `value`, with null for every number that is not finite. See `as_plain`."""
    return json.dumps(as_plain(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as `write_text` does."""
    write_text(path, dumps(value) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically: the file is complete or unchanged, even if the process is killed."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
