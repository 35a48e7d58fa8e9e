"""Published numbers that stand beside ours in the report. One CSV file in this folder has those of one paper.

A row is one number. Its columns: experiment (the command-line name), source (the paper), where (section,
table or figure), note (what the numbers are), setting (model and other conditions), metric, value, unit, and
confirmed ("yes": the number was read in the source; "no": the source has a cell that could not be read). The
numbers are of other models, images and protocols than ours: compare with care.
"""

import csv
import functools
from importlib import resources

from vit_registers.analysis.report.result import Table, Value


def read_rows() -> list[dict[str, str]]:
    """The rows of all files, by column name: one number each."""
    folder = resources.files("vit_registers.analysis.published")
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".csv")), key=lambda file: file.name
    )
    return [row for file in files for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())]


@functools.cache
def published_tables() -> dict[str, list[Table]]:
    """The tables of each experiment that has any: a row for each setting and a column for each metric.

    A cell is None where the source has no number, or one that could not be read.
    """
    groups: dict[tuple[str, str], dict[str, dict[str, Value]]] = {}
    for row in read_rows():
        title = f"{row['source']}, {row['where']}: {row['note']}"
        metric = f"{row['metric']}, {row['unit']}" if row["unit"] else row["metric"]
        settings = groups.setdefault((row["experiment"], title), {})
        settings.setdefault(row["setting"], {})[metric] = _value(row["value"])
    tables: dict[str, list[Table]] = {}
    for (experiment, title), settings in groups.items():
        metrics = list(dict.fromkeys(metric for numbers in settings.values() for metric in numbers))
        columns = ("setting", *metrics) if any(settings) else tuple(metrics)
        rows = [
            (setting, *map(numbers.get, metrics))[-len(columns) :] for setting, numbers in settings.items()
        ]
        table = Table(title=title, columns=columns, rows=rows)
        tables.setdefault(experiment, []).append(table)
    return tables


def _value(text: str) -> Value:
    """The number that the text is, None for an empty one, else the text, such as "less than 2"."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text or None
