"""The report as one HTML page, which contains its pictures, its style and a script that sorts tables.

Nothing is loaded from another address. It supports light and dark mode, small screens and the keyboard.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_registers.analysis.file_names import file_name
from vit_registers.analysis.report.describe import described
from vit_registers.analysis.report.drawing import DPI
from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.headline import UNCERTAINTY
from vit_registers.analysis.report.overview import by_group, chosen_pictures, group_findings, model_table
from vit_registers.analysis.report.page_style import SCRIPT, STYLE
from vit_registers.analysis.report.result import Picture, Table, counted

NOT_OURS = "Published, not ours"
_KEPT_TOGETHER = re.compile(r"(?<=\d) (?=[%±])|(?<=\bn) (?==)|(?<=[±=]) (?=\d)")
_OPEN_ROWS = 6  # longer tables are collapsed


def page(
    entries: Sequence[ReportEntry],
    folders: Mapping[str, Path],
    *,
    links: Mapping[str, str],
    title: str,
    about: Mapping[str, Any],
    has_head: bool,
) -> str:
    """The page. `folders` hold the pictures of each experiment; `links` are their addresses from the page.

    The page of one experiment needs no head, which has findings, models and pictures of all.
    """
    groups = by_group(entries)
    parts = [
        '<!doctype html><html lang="en" id="top"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>",
        '<a class="skip" href="#report">Skip to the report</a>',
        _navigation(groups, has_head),
        f'<main id="report" tabindex="-1"><h1>{_text(title)}</h1>',
        _compared(entries, about),
        _head(entries, groups, folders) if has_head else "",
    ]
    for name, members in groups.items():
        parts += [f'<h2 id="{_group_id(name)}">{_text(name)}</h2>']
        if has_head:
            own = "".join(f'<li><a href="#{_id(e)}">{_text(e.name)}</a></li>' for e in members)
            parts += [f'<ul class="here">{own}</ul>']
        parts += [
            _experiment(entry, folders[entry.name], links[entry.name], not has_head) for entry in members
        ]
        parts += ['<p class="top"><a href="#top">Back to top</a></p>'] if has_head else []
    return "\n".join([*parts, f"</main><script>{SCRIPT}</script></body></html>\n"])


def _text(text: str) -> str:
    return html.escape(text)


def _sentence(text: str) -> str:
    """The text, without line breaks between a number and its unit, around ± and within "n = 3"."""
    return _text(_KEPT_TOGETHER.sub("\N{NO-BREAK SPACE}", text))


def _id(entry: ReportEntry) -> str:
    return _text(file_name(entry.name))


def _group_id(name: str) -> str:
    return _text(f"group-{file_name(name.lower())}")


def _navigation(groups: Mapping[str, Sequence[ReportEntry]], has_head: bool) -> str:
    items = ['<li><a href="#findings">Findings</a></li>'] if has_head else []
    for name, members in groups.items():
        own = "".join(f'<li><a href="#{_id(e)}">{_text(e.name)}</a></li>' for e in members)
        items.append(f'<li><a href="#{_group_id(name)}">{_text(name)}</a><ul>{own}</ul></li>')
    return f'<nav aria-label="Experiments"><ul>{"".join(items)}</ul></nav>'


def _compared(entries: Sequence[ReportEntry], about: Mapping[str, Any]) -> str:
    lines = "".join(f"<li>{_text(name)}: {_text(str(value))}</li>" for name, value in about.items())
    head = f"{counted(len(entries), 'experiment')} on these models and images:"
    return f'<p>{head}</p><ul class="quiet">{lines}</ul>'


def _head(
    entries: Sequence[ReportEntry],
    groups: Mapping[str, Sequence[ReportEntry]],
    folders: Mapping[str, Path],
) -> str:
    """The findings by group, the table of models, the pictures, and all findings, collapsed."""
    found = {name: group_findings(members) for name, members in groups.items()}
    items = "".join(
        f'<li><a href="#{_group_id(name)}">{_text(name)}</a>'
        f"<ul>{''.join(f'<li>{_sentence(text)}</li>' for text in texts)}</ul></li>"
        for name, texts in found.items()
        if texts
    )
    parts = [f'<h2 id="findings">Findings</h2><ul class="findings">{items}</ul>'] if items else []
    if table := model_table(entries):
        parts.append(f'<h3>Models</h3><div class="models">{_table(table)}</div>')
        parts.append(f'<p class="quiet">{_text(UNCERTAINTY)}</p>')
    pictures = [
        _figure(picture, _png(entry, picture, folders), link=_id(entry))
        for entry, picture in chosen_pictures(entries)
    ]
    parts.append(f'<div class="pictures">{"".join(pictures)}</div>' if pictures else "")
    every = "".join(
        f'<li><a href="#{_id(e)}">{_text(e.name)}</a>: {_text(e.question)} {_sentence(e.result.finding)}</li>'
        for e in entries
    )
    parts.append(f"<details><summary>The finding of each experiment</summary><ul>{every}</ul></details>")
    return "\n".join(parts)


def _png(entry: ReportEntry, picture: Picture, folders: Mapping[str, Path]) -> bytes:
    name = entry.picture_names[[one is picture for one in entry.result.pictures].index(True)]
    return (folders[entry.name] / f"{name}.png").read_bytes()


def _figure(picture: Picture, png: bytes, *, link: str = "") -> str:
    caption, data = _text(picture.caption), base64.b64encode(png).decode()
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    # the size in inches on a screen of 96 dots per inch
    width, height = round(width * 96 / DPI), round(height * 96 / DPI)
    alt = _text(" ".join([picture.caption, *described(picture.figure)]))
    image = f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    more = f' <a href="#{link}">More: {link}</a>' if link else ""
    return f'<figure style="width: {width}px">{image}<figcaption>{caption}{more}</figcaption></figure>'


def _experiment(entry: ReportEntry, folder: Path, link: str, is_alone: bool) -> str:
    result = entry.result
    if not (result.tables or result.pictures or is_alone):
        return _not_measured(entry)
    parts = [
        f'<section id="{_id(entry)}">',
        _question(entry),
        f'<p class="finding">{_sentence(result.finding)}</p>',
        *[f'<p class="quiet">{_text(line)}.</p>' for line in result.images],
        *[f'<p class="caution">Small sample: {_text(line)}.</p>' for line in result.cautions],
        *_gaps(result.gaps),
    ]
    names = zip(entry.picture_names, result.pictures, strict=True)
    pictures = [_figure(one, (folder / f"{name}.png").read_bytes()) for name, one in names]
    parts.append(f'<div class="pictures">{"".join(pictures)}</div>' if pictures else "")
    more = []
    for name, table in zip(entry.table_names, result.tables, strict=True):
        csv = f'<p class="quiet"><a href="{_text(link)}{_text(name)}.csv">{_text(name)}.csv</a></p>'
        is_only = len(table.rows) <= _OPEN_ROWS and len(result.tables) == 1
        is_open = " open" if table.is_open or is_only else ""
        summary = f"<summary>{_text(table.title)}: {counted(len(table.rows), 'row')}</summary>"
        more.append(f"<details{is_open}>{summary}{_table(table, f'{entry.name}: ')}{csv}</details>")
    more.append(f"<details><summary>How it is measured</summary>{_method(entry)}</details>")
    more.append(_published(entry))
    return "\n".join([*parts, f'<div class="more">{"".join(more)}</div></section>'])


def _not_measured(entry: ReportEntry) -> str:
    """A section of one line, which opens: an experiment without a result says why, and how to have one."""
    inside = "".join([*_gaps(entry.result.gaps), _method(entry), _published(entry)])
    summary = f"<summary>{_question(entry)} not measured</summary>"
    return f'<section id="{_id(entry)}"><details>{summary}{inside}</details></section>'


def _published(entry: ReportEntry) -> str:
    if not entry.published:
        return ""
    tables = [f"<h4>{_text(table.title)}</h4>{_table(table, f'{entry.name}: ')}" for table in entry.published]
    is_open = " open" if entry.is_comparable else ""
    inside = f'<div class="published">{"".join(tables)}</div>'
    return f"<details{is_open}><summary>{NOT_OURS}</summary>{inside}</details>"


def _question(entry: ReportEntry) -> str:
    return f'<h3>{_text(entry.question)} <span class="name">{_text(entry.name)}</span></h3>'


def _gaps(gaps: Sequence[str]) -> list[str]:
    return [f'<p class="gap">Gap: {_text(gap)}.</p>' for gap in gaps]


def _method(entry: ReportEntry) -> str:
    return f"<p>{_text(entry.result.definition)}</p><p>Answers: {_text(entry.answers)}.</p>"


def _table(table: Table, where: str = "") -> str:
    """The table in a region that scrolls; `where` makes its name unique."""
    kinds = [' class="number"' if table.is_number(i) else "" for i in range(len(table.columns))]

    def line(cells: Sequence[str], tag: str) -> str:
        pairs = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{_text(cell)}</{tag.split()[0]}>' for kind, cell in pairs)}</tr>"

    rows = "".join(line(cells, "td") for cells in table.cells())
    head = line(table.columns, 'th scope="col"')
    body = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    label = _text(where + table.title)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{body}</div>'
