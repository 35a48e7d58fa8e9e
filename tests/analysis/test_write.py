"""Tables as Markdown, CSV and HTML; the report as files that need nothing else."""

import csv
import io
import json

import pytest
from matplotlib.figure import Figure

from vit_registers.analysis.section import Picture, Section, Table
from vit_registers.analysis.write import Entry, write_entry, write_report
from vit_registers.errors import DataError

TABLE = Table(
    title="Norms, by token",
    columns=("model", "mean"),
    rows=[("a<b", 1.23456789), ("c", None), ("d", 7)],
)


def _entry():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    picture = Picture(name="line", caption="A line & more.", figure=figure)
    section = Section(definition="What it is.", tables=[TABLE], pictures=[picture], gaps=["c: too few"])
    return Entry("norms", "How large?", "arXiv:2309.16588, figure 3", section)


def test_markdown_and_csv():
    assert TABLE.markdown().splitlines() == [
        "| model | mean |",
        "| --- | ---: |",
        "| a<b | 1.235 |",
        "| c | - |",
        "| d | 7 |",
    ]
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [["model", "mean"], ["a<b", "1.23456789"], ["c", ""], ["d", "7"]]


def test_files(tmp_path):
    entry = _entry()
    folder = write_entry(entry, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "line.png",
        "norms-by-token.csv",
        "numbers.json",
        "section.md",
    ]
    assert json.loads((folder / "numbers.json").read_text())["tables"][0]["rows"][0] == ["a<b", 1.23456789]
    page = write_report([entry], tmp_path, title="T & T", about={"model": "x"}).read_text()
    for piece in ("T &amp; T", "a&lt;b", "A line &amp; more.", "Gap: c: too few.", "data:image/png;base64,"):
        assert piece in page
    assert "](norms/line.png)" in (tmp_path / "report.md").read_text()


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "norms").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        write_entry(_entry(), tmp_path)
