"""Tables as Markdown, CSV and HTML; the report as files that need nothing else."""

import base64
import csv
import io
import json

import pytest
from matplotlib.figure import Figure

from vit_registers.analysis.published.tables import published_tables
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.report.write import ReportEntry, write_entry, write_report
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
    result = Result(
        definition="What it is.",
        finding="a<b has 1.23 (n = 3 images).",
        tables=[TABLE],
        pictures=[picture],
        gaps=["c: too few"],
    )
    return ReportEntry("norms", "How large?", "arXiv:2309.16588, figure 3", result)


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
        "result.md",
    ]
    assert json.loads((folder / "numbers.json").read_text())["tables"][0]["rows"][0] == ["a<b", 1.23456789]
    page = write_report([entry], tmp_path, title="T & T", about={"model": "x"}).read_text()
    for piece in ("T &amp; T", "a&lt;b", "A line &amp; more.", "Gap: c: too few.", "data:image/png;base64,"):
        assert piece in page
    assert "](norms/line.png)" in (tmp_path / "report.md").read_text()


def test_the_page_has_the_pictures_of_the_files(tmp_path):
    """Drawn once: a layout that is computed again may move."""
    png = (write_entry(_entry(), tmp_path) / "line.png").read_bytes()
    page = write_report([_entry()], tmp_path, title="T", about={}).read_text()
    assert base64.b64encode(png).decode() in page


def test_the_finding_is_in_every_file(tmp_path):
    """In the contents of the report as well."""
    entry = _entry()
    folder = write_entry(entry, tmp_path)
    page = write_report([entry], tmp_path, title="T", about={}).read_text()
    assert json.loads((folder / "numbers.json").read_text())["finding"] == entry.result.finding
    assert "Finding: a<b has 1.23 (n = 3 images)." in (folder / "result.md").read_text()
    assert (tmp_path / "report.md").read_text().count("a<b has 1.23 (n = 3 images).") == 2
    assert page.count("a&lt;b has 1.23 (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}3 images).") == 2


def test_published_numbers_are_beside_ours_and_not_among_them(tmp_path):
    entry = _entry()
    (theirs,) = published_tables()["norms"]
    folder = write_entry(entry, tmp_path)
    numbers = json.loads((folder / "numbers.json").read_text())
    assert [table["title"] for table in numbers["tables"]] == [TABLE.title]
    assert numbers["published"] == [
        {"title": theirs.title, "columns": list(theirs.columns), "rows": [list(row) for row in theirs.rows]}
    ]
    quoted = [line for line in (folder / "result.md").read_text().splitlines() if line.startswith(">")]
    assert quoted[0] == "> ### Published, not ours"
    assert f"> #### {theirs.title}" in quoted and "> | absolute:150 | 2.37 |" in quoted
    page = write_report([entry], tmp_path, title="T", about={}).read_text()
    ours, _, rest = page.partition('<div class="published">')
    assert "a&lt;b" in ours and "2.37" not in ours
    assert "2.37" in rest.partition("</div></div>")[0]


@pytest.mark.parametrize("name", ["norms", "mask"])
def test_nothing_is_published_beside_nothing(tmp_path, name):
    tables = [] if name == "norms" else [TABLE]  # nothing of ours; nothing of theirs
    entry = ReportEntry(name, "How?", "nothing", Result(definition="What it is.", tables=tables, gaps=["no"]))
    folder = write_entry(entry, tmp_path)
    assert json.loads((folder / "numbers.json").read_text())["published"] == []
    assert "not ours" not in (folder / "result.md").read_text()
    page = write_report([entry], tmp_path, title="T", about={}).read_text()
    assert "not ours" not in page


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "norms").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        write_entry(_entry(), tmp_path)
