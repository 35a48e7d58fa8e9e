"""The page of a report: groups, links, the table of models, and what is open."""

import html.parser
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from vit_registers.analysis.report.entry import ReportEntry
from vit_registers.analysis.report.figures import grouped_bars, new_axes, overlay, plain_log
from vit_registers.analysis.report.headline import Headline, over_images
from vit_registers.analysis.report.page import page
from vit_registers.analysis.report.result import Picture, Result, Rows, Table
from vit_registers.analysis.report.write import write_entry, write_report, write_single


def _entry(name, group, *, rows=2, headlines=None, is_comparable=False):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 400], [2, 0.5], label="a: loss")
    result = Result(
        definition="What.",
        finding="Yes.",
        tables=[Table(title="T", columns=("model", "x"), rows=[("a", i) for i in range(rows)])],
        pictures=[Picture(name="p", caption="C.", figure=figure, is_headline=True)],
        cautions=["a: 7 images, too few"],
        headlines=headlines or {},
    )
    return ReportEntry(name, "Why?", "figure 1", result, group=group, is_comparable=is_comparable)


ENTRIES = [
    _entry(
        "norms",
        "Norms",
        rows=40,
        headlines={
            "a": [Headline(what="parameters", value=1234567.0), over_images("outliers, %", np.arange(40.0))],
            "b": [over_images("outliers, %", np.arange(40.0) + 1)],
        },
    ),
    _entry("accuracy", "Training", is_comparable=True),
    _entry("lost", "Training"),
]


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_registers.analysis.report.drawing.DPI", 20)
    for entry in ENTRIES:
        write_entry(entry, tmp_path)
    return write_report(ENTRIES, tmp_path, title="R", about={"a": "x", "b": "y"}).read_text()


class _Tree(html.parser.HTMLParser):
    """Checks that tags are balanced, and keeps ids and links."""

    void = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_link_leads_somewhere_and_every_experiment_is_in_the_navigation(text, tmp_path):
    tree = _Tree(text)
    assert not tree.open and len(set(tree.ids)) == len(tree.ids)
    for link in tree.links:
        assert link[1:] in tree.ids if link.startswith("#") else (tmp_path / link).is_file(), link
    navigation = re.search("<nav.*</nav>", text, re.DOTALL).group()
    assert [f'href="#{entry.name}"' in navigation for entry in ENTRIES] == [True] * 3


def test_groups_are_in_order_and_long_tables_are_closed(text):
    assert [text.index(f">{name}</h2>") for name in ("Findings", "Norms", "Training")] == sorted(
        text.index(f">{name}</h2>") for name in ("Findings", "Norms", "Training")
    )
    assert "<details><summary>T: 40 rows</summary>" in text and "<details open><summary>T: 2 rows" in text
    closed, opened = "<details><summary>Published", "<details open><summary>Published"
    assert text.count(closed) == 2 and text.count(opened) == 1  # lost and norms; accuracy is comparable


def test_the_head_has_a_row_for_each_model_and_a_finding_for_each_group_with_numbers(text, tmp_path):
    head = text[text.index('id="findings"') : text.index("<details>")]
    assert "1,234,567" in head and "19.5 \u00b1 3.6" in head
    assert "b is higher by 1" in head
    assert head.count("<figure") == 3  # one for each marked picture
    markdown = (tmp_path / "report.md").read_text()
    assert "## Findings" in markdown and "b is higher by 1" in markdown and "| 1,234,567 |" in markdown


def test_alternative_texts_have_the_numbers_of_the_lines(text):
    assert 'alt="C. a: loss: 2 at 0, 0.5 at 400."' in text


def test_small_samples_are_flagged_in_every_file(text, tmp_path):
    assert text.count("Small sample: a: 7 images, too few.") == 3
    assert "Small sample: a: 7 images, too few." in (tmp_path / "norms" / "result.md").read_text()
    assert '"cautions"' in (tmp_path / "norms" / "numbers.json").read_text()


def test_one_experiment_has_a_page_without_a_head(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_registers.analysis.report.drawing.DPI", 20)
    write_entry(ENTRIES[0], tmp_path)
    path = write_single(ENTRIES[0], tmp_path, title="norms", about={"a": "x"})
    tree = _Tree(path.read_text())
    assert path == tmp_path / "norms" / "report.html" and "findings" not in tree.ids
    for link in tree.links:
        assert link[1:] in tree.ids if link.startswith("#") else (path.parent / link).is_file(), link


def test_an_experiment_without_a_result_is_one_line_among_others_and_open_alone(tmp_path):
    gaps = ["a: no prototypes", "b: no prototypes"]
    result = Result(definition="What.", finding=f"Not measured: {gaps[0]}.", gaps=gaps)
    entry = ReportEntry("prototype-use", "Why?", "figure 1", result, group="Training")
    for one in (entry, ENTRIES[0]):
        write_entry(one, tmp_path)
    among = write_report([entry, ENTRIES[0]], tmp_path, title="R", about={"a": "x"}).read_text()
    section = re.search(r'<section id="prototype-use">.*?</section>', among, re.S)[0]
    assert section.startswith('<section id="prototype-use"><details><summary><h3>Why?')
    assert all(f"Gap: {gap}." in section for gap in gaps) and "What." in section
    alone = write_single(entry, tmp_path, title="R", about={"a": "x"}).read_text()
    assert '<section id="prototype-use">\n<h3>' in alone and f"Not measured: {gaps[0]}" in alone


def test_names_are_escaped(tmp_path):
    entry = _entry("norms", "<b>")
    write_entry(entry, tmp_path)
    where = {"norms": tmp_path / "norms"}
    text = page([entry], where, links={"norms": "n/"}, title="<i>", about={"<u>": "<s>"}, has_head=True)
    assert not re.search("<(b|i|u|s)>", text)
    _Tree(text)


def test_models_keep_their_colours_where_some_are_missing():
    found = [
        Rows(tables={}, text="", count="", name=name, place=place, values=[1, 2])
        for name, place in (("b", 1),)
    ]
    figure = overlay(found, lambda axes, values, color, name: axes.plot(values, color=color, label=name))
    assert figure.axes[0].lines[0].get_color() == "#dd6b20"


def test_bars_of_a_model_without_a_group_are_left_out():
    _, axes = new_axes()
    found = [
        Rows(tables={}, text="", count="", name="a", place=0, values={"cls": 1.0, "registers": 2.0}),
        Rows(tables={}, text="", count="", name="b", place=1, values={"cls": 3.0, "summaries": None}),
    ]
    grouped_bars(axes, found, lambda one: one.values)
    heights = [bar.get_height() for bars in axes.containers for bar in bars.patches]
    assert heights[:3] == [1.0, 2.0, 3.0] and np.isnan(heights[3])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cls", "registers", "summaries"]


@pytest.mark.parametrize("values", [[1, 1000], [20, 38], [0.001, 5e6], [7, 7]])
def test_ticks_of_logarithmic_axes_are_plain(values):
    figure, axes = new_axes()
    axes.plot(values)
    plain_log(axes.yaxis)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert axes.get_yscale() == "log" and len(labels) >= 2
    assert not any("$" in label for label in labels)


@pytest.mark.parametrize("values", [[0, 0], [-2, -1], []])
def test_an_axis_without_positive_values_stays_linear(values):
    _, axes = new_axes()
    axes.plot(values)
    plain_log(axes.yaxis)
    assert axes.get_yscale() == "linear"


def test_numbers_and_units_of_a_finding_stay_on_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_registers.analysis.report.drawing.DPI", 20)
    entry = _entry("lost", "Training")
    entry.result.finding = "5.0 ± 0.2 % of patches (n = 3 images)."
    write_entry(entry, tmp_path)
    text = write_report([entry], tmp_path, title="R", about={}).read_text()
    space = "\N{NO-BREAK SPACE}"
    assert text.count(f"5.0{space}±{space}0.2{space}% of patches (n{space}={space}3 images).") == 2
