"""Results as files: CSV, PNG and JSON of each, and one Markdown and one HTML file of all. No JAX."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vit_registers.analysis.file_names import file_name, file_names
from vit_registers.analysis.report.drawing import save_png
from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.headline import UNCERTAINTY
from vit_registers.analysis.report.markdown import block, inline
from vit_registers.analysis.report.overview import by_group, group_findings, model_table
from vit_registers.analysis.report.page import NOT_OURS, page
from vit_registers.errors import DataError
from vit_registers.strict_json import dumps


def write_entry(entry: ReportEntry, out: Path, draw: Callable[[Figure, Path], None] = save_png) -> Path:
    """The folder out/<name>, after writing result.md, numbers.json, a CSV per table and a PNG per picture.

    `draw` writes the pictures. Raises DataError where the folder cannot be written to.
    """
    folder, result = out / entry.name, entry.result
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in zip(entry.table_names, result.tables, strict=True):
            _write(folder / f"{name}.csv", table.csv())
        for name, picture in zip(entry.picture_names, result.pictures, strict=True):
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
    path = out / "report.html"
    folders = {entry.name: out / entry.name for entry in entries}
    links = {entry.name: f"{file_name(entry.name)}/" for entry in entries}
    try:
        _write(out / "report.md", _whole_markdown(entries, title, about))
        _write(path, page(entries, folders, links=links, title=title, about=about, has_head=True))
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def write_single(entry: ReportEntry, out: Path, *, title: str, about: Mapping[str, Any]) -> Path:
    """The path of out/<name>/report.html, the page of one experiment, after writing it.

    It shows the pictures that `write_entry` wrote. Raises DataError where it cannot be written.
    """
    path = out / entry.name / "report.html"
    try:
        _write(
            path,
            page(
                [entry],
                {entry.name: path.parent},
                links={entry.name: ""},
                title=title,
                about=about,
                has_head=False,
            ),
        )
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _whole_markdown(entries: Sequence[ReportEntry], title: str, about: Mapping[str, Any]) -> str:
    lines = [f"# {block(title)}", ""]
    lines += [f"- {block(name)}: {inline(str(value))}" for name, value in about.items()]
    found = {name: group_findings(members) for name, members in by_group(entries).items()}
    if any(found.values()):
        lines += ["", "## Findings", ""]
        lines += [f"- {block(name)}: {inline(' '.join(texts))}" for name, texts in found.items() if texts]
    if table := model_table(entries):
        lines += ["", "## Models", "", table.markdown(), "", inline(UNCERTAINTY)]
    lines += ["", "## Contents", ""]
    lines += [
        f"- [{inline(e.name)}](#{file_name(e.name)}): {inline(e.question)} {inline(e.result.finding)}"
        for e in entries
    ]
    return "\n".join([*lines, "", ""]) + "\n".join(_markdown(entry, f"{entry.name}/") for entry in entries)


def _markdown(entry: ReportEntry, folder: str) -> str:
    result = entry.result
    parts = [
        f"## {block(entry.name)}\n",
        f"**{inline(entry.question)}**\n",
        f"Finding: {inline(result.finding)}\n",
        f"{block(result.definition)}\n",
        f"Answers: {inline(entry.answers)}.\n",
    ]
    parts += [f"{inline(line)}.\n" for line in result.images]
    parts += [f"Small sample: {inline(line)}.\n" for line in result.cautions]
    parts += [f"Gap: {inline(gap)}.\n" for gap in result.gaps]
    parts += [f"### {block(table.title)}\n\n{table.markdown()}" for table in result.tables]
    if entry.published:
        published = [f"#### {block(table.title)}\n\n{table.markdown()}" for table in entry.published]
        lines = "\n".join([f"### {NOT_OURS}\n", *published]).splitlines()
        parts.append("".join(f"> {line}".rstrip() + "\n" for line in lines))
    for name, picture in zip(entry.picture_names, result.pictures, strict=True):
        parts.append(f"![{inline(picture.caption)}]({folder}{name}.png)\n\n{block(picture.caption)}\n")
    return "\n".join(parts)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
