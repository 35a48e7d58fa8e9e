"""Names of any characters: report.md as Markdown parsers read it, report.html, files, pictures, JSON."""

import html.parser
import json
import re
import urllib.parse

import numpy as np
import pytest
from matplotlib.figure import Figure

from vit_registers.analysis import opening
from vit_registers.analysis.report.markdown import block, inline
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.report.write import ReportEntry, write_entry, write_report

NAMES = [
    "a|b\nc",
    "[a](b) ![c](d) [e]: f",
    "<script>alert(1)</script> <b a='x>y'>",
    "<!-- a",
    "*a* **b** _c_ __d__ ~~e~~ `f` ``g``",
    "a_b_c d_ _e",
    "# a #",
    "- a",
    "+ a",
    "1. a",
    "2) a",
    "---",
    "> a",
    "\\a\\ \\* \\| \\",
    "a\\|b|",
    "&lt; &amp; &#60; & a &b",
    "$a$ $\\frac$ \\$b$",
    "http://a.b/c?d=e&f <http://g>",
    "\"a\" 'b' &quot;",
    "a<b",
    "a<b and c>d",
    "_a",
    "模型 é",
    "    a",
    "a\tb\r\n\r\n# c",
    ":-- | --:",
]


class _Read(html.parser.HTMLParser):
    """The texts of headings, cells, list items, paragraphs and alternative texts, in order; all tags."""

    kinds = ("h1", "h2", "h3", "h4", "th", "td", "li", "p")

    def __init__(self, page):
        super().__init__()
        self.found, self.tags, self.images, self.links, self._open = (
            {kind: [] for kind in self.kinds},
            set(),
            [],
            [],
            [],
        )
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag in self.kinds:
            self._open.append((tag, []))
        if tag == "img":
            self.images.append((dict(attributes)["alt"], dict(attributes)["src"]))
        if tag == "a":
            self.links.append(dict(attributes)["href"])

    def handle_endtag(self, tag):
        if self._open and self._open[-1][0] == tag:
            self.found[tag].append(" ".join("".join(self._open.pop()[1]).split()))

    def handle_data(self, data):
        if self._open:
            self._open[-1][1].append(data)


def _python_markdown(text):
    return pytest.importorskip("markdown").markdown(text, extensions=["tables"])


def _markdown_it(text):
    return (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(text)
    )


PARSERS = {"markdown": _python_markdown, "markdown-it": _markdown_it}


def _shown(name):
    return " ".join(name.split())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_shows_the_text(parser, name):
    """As a heading, a list item, a paragraph, a cell beside another, and the text of a link and a picture."""
    text = block(name)
    source = f"# {text}\n\n- {text}\n\n{text}\n\n| x | y |\n| --- | --- |\n| {inline(name)} | z |\n\n"
    source += f"[{inline(name)}](#x)\n\n![{inline(name)}](x.png)\n"
    read = _Read(PARSERS[parser](source))
    shown = _shown(name)
    assert read.found["h1"] == read.found["li"] == [shown]
    assert read.found["td"] == [shown, "z"]
    assert read.found["p"][:2] == [shown, shown]
    assert [alt for alt, _ in read.images] == [shown]
    assert read.links == ["#x"]
    assert read.tags <= {"h1", "ul", "li", "p", "table", "thead", "tbody", "tr", "th", "td", "a", "img"}


def _entry(names):
    def figure():
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        axes.plot([1, 1000])
        axes.set(yscale="log", title=names[0])
        return figure

    pictures = [Picture(name=f"maps-{name}", caption=f"{name}: maps.", figure=figure()) for name in names]
    table = Table(
        title="Norms", columns=("model", "mean"), rows=[*((name, 1.5) for name in names), ("z", np.nan)]
    )
    gaps = [f"{name}: nothing" for name in names]
    files = {f"neurons-{name}.json": "{}" for name in names}
    result = Result(definition="What it is.", tables=[table], pictures=pictures, gaps=gaps, files=files)
    return ReportEntry("norms", "How large?", "a figure", result)


@pytest.mark.parametrize("parser", PARSERS)
def test_the_report_shows_the_names(tmp_path, parser, monkeypatch):
    monkeypatch.setattr("vit_registers.analysis.report.drawing.DPI", 20)
    names = [*NAMES[:4], "a[b", "A(b", "x" * 200, "$a$", "模型", "\udcff"]
    entry = _entry(names)
    folder = write_entry(entry, tmp_path)
    about = {name: f"{name}; 3 images" for name in names}
    page = write_report([entry], tmp_path, title="T", about=about)
    shown = [_shown(name).replace("\udcff", "\\udcff") for name in names]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    # the last name is not text: it is written as Python's escape, in which a backslash is Markdown's
    read = _Read(PARSERS[parser](text.replace("\\udcff", "\\\\udcff")))
    assert read.found["td"][: 2 * len(names)] == [cell for name in shown for cell in (name, "1.5")]
    assert read.found["li"][: len(names)] == [f"{name}: {name}; 3 images" for name in shown]
    assert [line for line in read.found["p"] if line.startswith("Gap: ")] == [
        f"Gap: {name}: nothing." for name in shown
    ]
    assert [alt for alt, _ in read.images] == [f"{name}: maps." for name in shown]
    sources = [source for _, source in read.images]
    assert len({source.lower() for source in sources}) == len(names)
    for source in sources:
        assert (tmp_path / urllib.parse.unquote(source)).read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.glob("neurons-*.json"))) == len(names)
    assert not read.tags & {"em", "strong", "code", "script", "b", "del"} - {"strong"}

    read = _Read(page.read_text(encoding="utf-8"))
    assert read.found["td"][: 2 * len(names)] == [cell for name in shown for cell in (name, "1.5")]
    assert page.read_text(encoding="utf-8").count("<script") == 1  # the one that sorts tables
    assert [alt for alt, _ in read.images] == [f"{name}: maps." for name in names[:-1]] + ["\\udcff: maps."]
    numbers = json.loads((folder / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert numbers["tables"][0]["rows"][-1] == ["z", None]
    assert (folder / "norms.csv").read_text(encoding="utf-8").splitlines()[-1] == "z,"


def test_names_of_checkpoints_are_one_line():
    names = opening._short_names(["runs/a|b\nc", "runs/d\x1b[31m", "runs/e\udcff"])
    assert names == ["a|b c", "d\ufffd[31m", "e\ufffd"]


def test_ticks_of_logarithmic_axes_are_still_formulas(tmp_path):
    """While a name between dollar signs is none: it would be drawn in italics, or not at all."""
    entry = _entry(["$a$"])
    write_entry(entry, tmp_path)
    axes = entry.result.pictures[0].figure.axes[0]
    assert not axes.title.get_parse_math()
    ticks = [label for label in axes.get_yticklabels() if re.search("mathdefault", label.get_text())]
    assert ticks and all(label.get_parse_math() for label in ticks)
