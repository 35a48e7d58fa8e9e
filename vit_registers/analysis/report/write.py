"""Results as files: CSV, PNG and JSON of each, and one Markdown and one HTML file of all. No JAX.

The HTML file contains the pictures, and has no script and no link to another address. It supports light and
dark mode and small screens.
"""

import base64
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from vit_registers.analysis.file_names import file_name, file_names
from vit_registers.analysis.published.tables import published_tables
from vit_registers.analysis.report.drawing import save_png
from vit_registers.analysis.report.markdown import block, inline
from vit_registers.analysis.report.result import Result, Table
from vit_registers.errors import DataError
from vit_registers.strict_json import dumps

_NOT_OURS = "Published, not ours"
_STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --paper: #ffffff; --line: #cbd5e0; --soft: #f7fafc;
  --link: #2b6cb0; --gap: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --paper: #171923; --line: #4a5568;
  --soft: #232733; --link: #90cdf4; --gap: #f6ad55; } }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
a { color: var(--link); }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin-bottom: 0.3rem; font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.2rem 0.7rem 0.2rem 0; text-align: left;
  white-space: nowrap; }
th { background: var(--soft); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; background: #ffffff; border-radius: 4px; }
figcaption { font-size: 0.85rem; }
.published { margin: 1rem 0; border-left: 4px solid var(--line); padding: 0.2rem 0 0.6rem 1rem;
  background: var(--soft); }
.published h4 { margin: 0.8rem 0 0.3rem; font-weight: 400; font-size: 0.85rem; }
.question { font-weight: 600; }
.finding { border-left: 4px solid var(--link); padding-left: 1rem; }
.gap { color: var(--gap); }
"""


class ReportEntry(NamedTuple):
    """A result with its question."""

    name: str
    question: str
    answers: str  # which figure or table of which paper
    result: Result

    @property
    def published(self) -> list[Table]:
        """The papers' numbers, where there are numbers or pictures of ours to compare them with."""
        has_own = bool(self.result.tables or self.result.pictures)
        return published_tables().get(self.name, []) if has_own else []

    def numbers(self) -> dict[str, Any]:
        """All that was measured, and the published numbers, for a JSON file."""
        head = {"experiment": self.name, "question": self.question}
        published = [table.numbers() for table in self.published]
        return {**head, **self.result.numbers(), "published": published}


def write_entry(entry: ReportEntry, out: Path, draw: Callable[[Figure, Path], None] = save_png) -> Path:
    """The folder out/<name>, after writing result.md, numbers.json, a CSV per table and a PNG per picture.

    `draw` writes the pictures. Raises DataError where the folder cannot be written to.
    """
    folder, result = out / entry.name, entry.result
    try:
        folder.mkdir(parents=True, exist_ok=True)
        slugs = [re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-") for table in result.tables]
        for name, table in zip(file_names(slugs), result.tables, strict=True):
            _write(folder / f"{name}.csv", table.csv())
        for name, picture in zip(_picture_names(result), result.pictures, strict=True):
            draw(picture.figure, folder / f"{name}.png")
        parts = [name.rpartition(".") for name in result.files]
        stems = file_names([stem for stem, _, _ in parts])
        for stem, (_, _, ending), text in zip(stems, parts, result.files.values(), strict=True):
            _write(folder / f"{stem}.{ending}", text)
        _write(folder / "numbers.json", dumps(entry.numbers()) + "\n")
        _write(folder / "result.md", _markdown(entry, ""))
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error.strerror}") from None
    return folder


def write_report(entries: Sequence[ReportEntry], out: Path, *, title: str, about: Mapping[str, Any]) -> Path:
    """The path of out/report.html, after writing it and out/report.md.

    `about` describes what was analysed, by name, for the head of the report. Both show the pictures that
    `write_entry` wrote. Raises DataError where the folder cannot be written to.
    """
    head = [f"- {block(name)}: {inline(str(value))}" for name, value in about.items()]
    contents = [
        f"- [{inline(e.name)}](#{file_name(e.name)}): {inline(e.question)} {inline(e.result.finding)}"
        for e in entries
    ]
    lines = [f"# {block(title)}", "", *head, "", "## Contents", "", *contents, "", ""]
    markdown = "\n".join(lines) + "\n".join(_markdown(entry, f"{entry.name}/") for entry in entries)
    path = out / "report.html"
    try:
        _write(out / "report.md", markdown)
        _write(path, _html(entries, out, title, about))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _markdown(entry: ReportEntry, folder: str) -> str:
    result = entry.result
    parts = [
        f"## {block(entry.name)}\n",
        f"**{inline(entry.question)}**\n",
        f"Finding: {inline(result.finding)}\n",
        f"{block(result.definition)}\n",
        f"Answers: {inline(entry.answers)}.\n",
    ]
    parts += [f"Gap: {inline(gap)}.\n" for gap in result.gaps]
    parts += [f"### {block(table.title)}\n\n{table.markdown()}" for table in result.tables]
    if entry.published:
        published = [f"#### {block(table.title)}\n\n{table.markdown()}" for table in entry.published]
        lines = "\n".join([f"### {_NOT_OURS}\n", *published]).splitlines()
        parts.append("".join(f"> {line}".rstrip() + "\n" for line in lines))
    for name, picture in zip(_picture_names(result), result.pictures, strict=True):
        parts.append(f"![{inline(picture.caption)}]({folder}{name}.png)\n\n{block(picture.caption)}\n")
    return "\n".join(parts)


def _html(entries: Sequence[ReportEntry], out: Path, title: str, about: Mapping[str, Any]) -> str:
    text = html.escape
    head = [f"<li>{text(name)}: {text(str(value))}</li>" for name, value in about.items()]
    contents = [
        f'<li><a href="#{text(file_name(e.name))}">{text(e.name)}</a>: {text(e.question)} '
        f"{text(e.result.finding)}</li>"
        for e in entries
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1><ul>{''.join(head)}</ul>",
            f"<nav><h2>Contents</h2><ul>{''.join(contents)}</ul></nav>",
            *[_html_result(entry, out / entry.name) for entry in entries],
            "</body></html>\n",
        ]
    )


def _html_result(entry: ReportEntry, folder: Path) -> str:
    text, result = html.escape, entry.result
    parts = [
        f'<section id="{text(file_name(entry.name))}"><h2>{text(entry.name)}</h2>',
        f'<p class="question">{text(entry.question)}</p>',
        f'<p class="finding">{text(result.finding)}</p><p>{text(result.definition)}</p>',
        f"<p>Answers: {text(entry.answers)}.</p>",
    ]
    parts += [f'<p class="gap">Gap: {text(gap)}.</p>' for gap in result.gaps]
    parts += [f"<h3>{text(table.title)}</h3>{_html_table(table)}" for table in result.tables]
    if entry.published:
        tables = [f"<h4>{text(table.title)}</h4>{_html_table(table)}" for table in entry.published]
        parts.append(f'<div class="published"><h3>{_NOT_OURS}</h3>{"".join(tables)}</div>')
    for name, picture in zip(_picture_names(result), result.pictures, strict=True):
        png, caption = (folder / f"{name}.png").read_bytes(), text(picture.caption)
        data = base64.b64encode(png).decode()
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table) -> str:
    kinds = [' class="number"' if table.is_number(i) else "" for i in range(len(table.columns))]

    def line(cells: Sequence[str], tag: str) -> str:
        pairs = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{html.escape(cell)}</{tag}>' for kind, cell in pairs)}</tr>"

    rows = "".join(line(cells, "td") for cells in table.cells())
    return f'<div class="scroll"><table>{line(table.columns, "th")}{rows}</table></div>'


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _picture_names(result: Result) -> list[str]:
    return file_names([picture.name for picture in result.pictures])
