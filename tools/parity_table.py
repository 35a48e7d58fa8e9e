"""Compares every family of weights with the library that made it, and writes the table of docs/weights.md.

    python -m tools.parity_table             # prints the table
    python -m tools.parity_table --write     # and puts it into docs/weights.md
    python -m tools.parity_table radio clip  # the rows whose family or model has one of these words

A row is a model of tools/parity/rows.py, with random weights in all parameters. The numbers are the largest
difference of the tokens, the pooled vector and the answer, relative to the largest number of each. Exits with
code 1 if a row cannot be computed or exceeds the limit.
"""

import importlib.metadata
import re
import sys
from pathlib import Path

from tools.parity.rows import ROWS, Row, errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "weights.md"
HEAD = "| family | source | model | size in the file | other size |"
LIMIT = 1e-5
_LIBRARIES = ("transformers", "timm", "torch", "jax")


def line(row: Row) -> tuple[str, bool]:
    """(a line of the table, whether the errors are within the limit)."""
    try:
        found = errors(row)
    except Exception as error:  # every row is shown
        print(f"{row.family}, {row.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return f"| {row.family} | {row.source} | `{row.name}` | fails | fails |", False
    cells = " | ".join(f"{value:.0e}" for value in found)
    return f"| {row.family} | {row.source} | `{row.name}` | {cells} |", max(found) <= LIMIT


def versions() -> str:
    """The versions of the libraries, and the sizes."""
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return f"Made by `python -m tools.parity_table --write` with {found}."


def write(table: str) -> None:
    """Replaces the table, and the line of versions before it, in docs/weights.md."""
    pattern = rf"^Made by `python -m tools\.parity_table.*\n\n{re.escape(HEAD)}\n(\|.*\n)+"
    text, count = re.subn(pattern, lambda match: table, PAGE.read_text(), flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"error: {PAGE} has {count} tables that begin with {HEAD}: it must have one")
    PAGE.write_text(text)


def main(arguments: list[str]) -> int:
    """Prints the table, and writes it with --write."""
    words = [word.lower() for word in arguments if not word.startswith("-")]
    rows = [row for row in ROWS if not words or any(w in f"{row.family} {row.name}".lower() for w in words)]
    is_written = "--write" in arguments
    if unknown := [word for word in arguments if word.startswith("-") and word != "--write"]:
        sys.exit(f"error: {unknown[0]} is no flag: --write is the only one")
    if not rows or (is_written and words):
        sys.exit("error: no row has these words" if not rows else "error: --write takes no words")
    lines, is_fine = [versions(), "", HEAD, re.sub(r"[^|]+", "---", HEAD)], True
    print("\n".join(lines), flush=True)
    for row in rows:
        text, is_within = line(row)
        print(text, flush=True)
        lines, is_fine = [*lines, text], is_fine and is_within
    if is_written:
        write("\n".join(lines) + "\n")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
