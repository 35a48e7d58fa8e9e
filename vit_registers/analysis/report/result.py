"""The rows of one model or a gap, the result for all models, and the formats of numbers. No JAX."""

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.report.markdown import inline

if TYPE_CHECKING:
    from vit_registers.analysis.report.headline import Headline

Value = str | float | int | None


class Gap(NamedTuple):
    """The reason why a model cannot be measured: one line, which starts with the model's name."""

    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What an experiment measured on one model.

    `tables` are rows by the title of their table, without the column "model". `values` are what the figure
    shows. `text` is the clause of the finding on this model, without its name; `compared` is the number that
    models are compared by, and `count` what the numbers are means over, such as "196 images". `files` are
    written beside the tables, by name. For the head of the report: `headlines`, and `remark`, a clause on
    what has no number. `cautions` say what is too small for a claim. `images` says which images trained and
    which tested, where --train_data names them.
    """

    tables: Mapping[str, Sequence[Sequence[Value]]]
    text: str
    count: str
    name: str = ""  # of the model; Experiment sets it
    place: int = 0  # of the model among all, which determines its colour; Experiment sets it
    compared: float | None = None
    values: Any = None
    gaps: Sequence[str] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    headlines: Sequence["Headline"] = ()
    remark: str = ""
    cautions: Sequence[str] = ()
    images: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under named columns. Numbers that are not finite become None.

    The report shows None as "-" and floats with four significant digits.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Value]]
    is_open: bool = False  # shown by the page without a click, however many tables there are

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.title
        rows = [tuple(None if is_not_finite(cell) else cell for cell in row) for row in self.rows]
        object.__setattr__(self, "rows", rows)

    @property
    def slug(self) -> str:
        """The title in small letters and digits, for the name of a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def cells(self) -> list[list[str]]:
        """The rows as the report shows them."""
        return [["-" if cell is None else _shown(cell) for cell in row] for row in self.rows]

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers only."""
        return all(not isinstance(row[column], str) for row in self.rows)

    def markdown(self) -> str:
        """The table in Markdown, without its title; the texts of cells are escaped."""
        rules = ["---:" if self.is_number(i) else "---" for i in range(len(self.columns))]
        lines = [map(inline, self.columns), rules, *(map(inline, line) for line in self.cells())]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def csv(self) -> str:
        """The table with all digits."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def numbers(self) -> dict[str, Any]:
        """The table for a JSON file."""
        return {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with the name of its file, without ending, and a caption that says what it shows."""

    name: str
    caption: str
    figure: Figure
    is_headline: bool = False  # whether the head of the report shows it too


Found = Sequence[Rows]  # of all models
Pictures = Iterable[Picture]


@dataclasses.dataclass(kw_only=True)
class Result:
    """The answer to one question.

    `finding` is the answer in one line. Each line of `gaps` says what is missing, and why; each of `cautions`
    what is too small for a claim. `files` are written beside the tables, by name, and are too long for the
    report. `headlines` and `remarks` are by model. Each of `images` says which images trained and which
    tested.
    """

    definition: str
    finding: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    gaps: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    cautions: list[str] = dataclasses.field(default_factory=list)
    headlines: dict[str, Sequence["Headline"]] = dataclasses.field(default_factory=dict)
    remarks: dict[str, str] = dataclasses.field(default_factory=dict)
    images: list[str] = dataclasses.field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """The finding, all tables, gaps and cautions, for a JSON file."""
        tables = [table.numbers() for table in self.tables]
        given = {"cautions": self.cautions, "images": self.images}
        more = {name: list(lines) for name, lines in given.items() if lines}
        return {"finding": self.finding, "tables": tables, "gaps": list(self.gaps), **more}


def number(value: float | None, unit: str = "") -> str:
    """A number with three digits and its unit; "not defined" for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "not defined"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def counted(count: int, noun: str) -> str:
    """The count with its noun, as in "1,000 images" and "1 image"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def percent(share: float | None) -> float | None:
    """A share as per cent; None stays None."""
    return None if share is None else 100 * share


def is_not_finite(cell: Value) -> bool:
    """Whether the cell is a number that is NaN or infinite."""
    return isinstance(cell, (float, np.floating)) and not math.isfinite(cell)


def _shown(cell: str | float | int) -> str:
    return f"{cell:.4g}" if isinstance(cell, (float, np.floating)) else str(cell)
