"""The result of an experiment: text, tables, pictures and stated gaps. No JAX."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.report.markdown import inline

Cell = str | float | int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns; None is printed as '-', floats with four significant digits."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title

    def cells(self) -> list[list[str]]:
        """The rows as printed."""
        return [[shown(cell) for cell in row] for row in self.rows]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers only."""
        return all(not isinstance(row[column], str) for row in self.rows)

    def markdown(self) -> str:
        """The table in Markdown, without its title; a parser shows the cells literally."""
        rules = ["---:" if self.is_number(i) else "---" for i in range(len(self.columns))]
        lines = [map(inline, self.columns), rules, *(map(inline, line) for line in self.cells())]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def csv(self) -> str:
        """The table with all digits."""
        text = io.StringIO()
        rows = [[None if is_not_finite(cell) else cell for cell in row] for row in self.rows]
        csv.writer(text, lineterminator="\n").writerows([self.columns, *rows])
        return text.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the name of its file, without ending, and what is to be seen."""

    name: str
    caption: str
    figure: Figure


@dataclasses.dataclass(kw_only=True)
class Result:
    """The answer to one question. `gaps` are lines that say what is missing, and why.

    `files` are written beside the tables, by name, and are not part of the report: what is too long for it.
    """

    definition: str
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    gaps: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        """All tables and gaps, for a JSON file, which holds no number that is not finite."""
        tables = [
            {
                "title": t.title,
                "columns": list(t.columns),
                "rows": [[None if is_not_finite(cell) else cell for cell in row] for row in t.rows],
            }
            for t in self.tables
        ]
        return {"tables": tables, "gaps": list(self.gaps)}


def is_not_finite(cell: Cell) -> bool:
    """Whether it is a number, and NaN or infinite."""
    return isinstance(cell, (float, np.floating)) and not math.isfinite(cell)


def shown(cell: Cell) -> str:
    """A cell as printed."""
    if cell is None or is_not_finite(cell):
        return "-"
    return f"{cell:.4g}" if isinstance(cell, (float, np.floating)) else str(cell)
