"""Prints the result of a task, and writes it as JSON, CSV and PNG."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image

from vit_registers.evaluation.task import TaskResult, TaskTable
from vit_registers.objectives.base import find_non_finite
from vit_registers.storage import files
from vit_registers.strict_json import as_plain

_MOST_ROWS = 60  # of a table on the screen; files have all
_MIN_WIDTH = 12


def print_values(result: Mapping[str, Any], notes: Sequence[str] = ()) -> int:
    """Prints one value in each line, then a warning if one is not finite, and notes. Returns the width."""
    width = max(_MIN_WIDTH, *(len(name) + 2 for name in result))
    for name, value in result.items():
        if name != "settings" and not (name == "step" and value is None):
            print(f"{name:<{width}}{_shown(value)}")
    numbers = {
        key: value
        for key, value in result.items()
        if key != "step" and (value is None or isinstance(value, int | float))
    }
    if "test_images" in numbers:  # the name in results of dense tasks
        numbers["images"] = numbers["test_images"]
    if found := find_non_finite(numbers):
        print(f"{'warning':<{width}}{found}")
    for note in notes:
        print(f"{'note':<{width}}{note}")
    return width


def print_task_table(name: str, table: TaskTable) -> None:
    """Prints the table with aligned columns, and its first rows only if it is long."""
    rows = [[_cell(cell) for cell in row] for row in table.rows[:_MOST_ROWS]]
    cells = [list(table.columns), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    print(f"\n{name}")
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(table.rows) > _MOST_ROWS:
        print(f"... {len(table.rows) - _MOST_ROWS} more rows, which the CSV file has")


def write_task(
    folder: epath.Path, stem: str, values: Mapping[str, Any], result: TaskResult
) -> list[epath.Path]:
    """The files of a result in `folder`: STEM.json, STEM-TABLE.csv, STEM-PICTURE.png. All are replaced.

    The JSON file is written last, so that a result that has one is complete.
    """
    written = []
    for name in files.names(folder):
        if name.startswith(stem):
            files.remove(folder / name)
    for name, table in result.tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows([["" if cell is None else cell for cell in as_plain(row)] for row in table.rows])
        written.append(folder / f"{stem}-{name}.csv")
        files.write_text(written[-1], text.getvalue())
    for name, image_HxWx3 in result.pictures.items():
        written.append(folder / f"{stem}-{name}.png")
        png = io.BytesIO()
        Image.fromarray(image_HxWx3).save(png, format="PNG")
        files.write_bytes(written[-1], png.getvalue())
    json_path = folder / f"{stem}.json"
    tables = {name: {"columns": table.columns, "rows": table.rows} for name, table in result.tables.items()}
    names = [path.name for path in written]
    files.write_json(json_path, {**values, "notes": result.notes, "tables": tables, "files": names})
    return [json_path, *written]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else str(value)


def _cell(value: Any) -> str:
    is_small = isinstance(value, float) and 0 < abs(value) < 1e-3
    return f"{value:.3g}" if is_small else _shown(value)
