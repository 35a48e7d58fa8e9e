"""Sections -> files: CSV, PNG and JSON of each, and all of them as one Markdown and one HTML file. No JAX.

The HTML file needs nothing else: pictures are inside, there is no script and no address. It follows the
reader's choice of light or dark, and fits a phone.
"""

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_registers.analysis.published import PUBLISHED
from vit_registers.analysis.section import Section, Table
from vit_registers.errors import DataError
from vit_registers.strict_json import dumps

_DPI = 130
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
.gap { color: var(--gap); }
"""


class Entry(NamedTuple):
    """A section with what was asked, in the report's order."""

    name: str
    question: str
    answers: str  # which figure or table of which paper
    section: Section

    @property
    def published(self) -> list[Table]:
        """The papers' numbers, where there is something of ours to be read beside them."""
        has_own = bool(self.section.tables or self.section.pictures)
        return PUBLISHED.get(self.name, []) if has_own else []

    def numbers(self) -> dict[str, Any]:
        """All that was measured, and what others published, for a JSON file."""
        theirs = Section(definition="", tables=self.published).numbers()["tables"]
        head = {"experiment": self.name, "question": self.question}
        return {**head, **self.section.numbers(), "published": theirs}


def write_entry(entry: Entry, out: Path) -> Path:
    """Writes out/<name>/: section.md, a CSV file per table, a PNG per picture, numbers.json. The folder."""
    folder = out / entry.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table in entry.section.tables:
            (folder / f"{_file_name(table.title)}.csv").write_text(table.csv())
        for picture in entry.section.pictures:
            (folder / f"{picture.name}.png").write_bytes(_png(picture.figure))
        for name, text in entry.section.files.items():
            (folder / name).write_text(text)
        (folder / "numbers.json").write_text(dumps(entry.numbers()) + "\n")
        (folder / "section.md").write_text(_markdown(entry, ""))
    except OSError as error:
        raise DataError(f"{folder} cannot be written to: {error.strerror}") from None
    return folder


def write_report(entries: Sequence[Entry], out: Path, *, title: str, about: Mapping[str, Any]) -> Path:
    """Writes out/report.md and out/report.html, and returns the path of the latter.

    `about` is what was analysed, name by name, for the head of the report. The pictures of report.md are
    those that `write_entry` wrote.
    """
    lines = [
        f"# {title}",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
        "## Contents",
        "",
    ]
    lines += [f"- [{entry.name}](#{entry.name}): {entry.question}" for entry in entries]
    markdown = "\n".join(lines) + "\n\n" + "\n".join(_markdown(entry, f"{entry.name}/") for entry in entries)
    path = out / "report.html"
    try:
        (out / "report.md").write_text(markdown)
        path.write_text(_html(entries, title, about))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _markdown(entry: Entry, folder: str) -> str:
    section = entry.section
    parts = [
        f"## {entry.name}\n",
        f"**{entry.question}**\n",
        f"{section.definition}\n",
        f"Answers: {entry.answers}.\n",
    ]
    parts += [f"Gap: {gap}.\n" for gap in section.gaps]
    parts += [f"### {table.title}\n\n{table.markdown()}" for table in section.tables]
    if entry.published:
        published = [f"#### {table.title}\n\n{table.markdown()}" for table in entry.published]
        lines = "\n".join([f"### {_NOT_OURS}\n", *published]).splitlines()
        parts.append("".join(f"> {line}".rstrip() + "\n" for line in lines))
    parts += [f"![{p.caption}]({folder}{p.name}.png)\n\n{p.caption}\n" for p in section.pictures]
    return "\n".join(parts)


def _html(entries: Sequence[Entry], title: str, about: Mapping[str, Any]) -> str:
    text = html.escape
    head = [f"<li>{text(name)}: {text(str(value))}</li>" for name, value in about.items()]
    contents = [f'<li><a href="#{e.name}">{text(e.name)}</a>: {text(e.question)}</li>' for e in entries]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1><ul>{''.join(head)}</ul>",
            f"<nav><h2>Contents</h2><ul>{''.join(contents)}</ul></nav>",
            *map(_html_section, entries),
            "</body></html>\n",
        ]
    )


def _html_section(entry: Entry) -> str:
    text, section = html.escape, entry.section
    parts = [
        f'<section id="{entry.name}"><h2>{text(entry.name)}</h2>',
        f'<p class="question">{text(entry.question)}</p><p>{text(section.definition)}</p>',
        f"<p>Answers: {text(entry.answers)}.</p>",
    ]
    parts += [f'<p class="gap">Gap: {text(gap)}.</p>' for gap in section.gaps]
    parts += [f"<h3>{text(table.title)}</h3>{_html_table(table)}" for table in section.tables]
    if entry.published:
        tables = [f"<h4>{text(table.title)}</h4>{_html_table(table)}" for table in entry.published]
        parts.append(f'<div class="published"><h3>{_NOT_OURS}</h3>{"".join(tables)}</div>')
    for picture in section.pictures:
        data = base64.b64encode(_png(picture.figure)).decode()
        parts.append(
            f'<figure><img alt="{text(picture.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{text(picture.caption)}</figcaption></figure>"
        )
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table) -> str:
    kinds = [' class="number"' if table.is_number(i) else "" for i in range(len(table.columns))]

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(marked)}</tr>"

    rows = "".join(line(cells, "td") for cells in table.cells())
    return f'<div class="scroll"><table>{line(table.columns, "th")}{rows}</table></div>'


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
