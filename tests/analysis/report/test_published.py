"""Published numbers name where they are from, and what was computed from them is right."""

import re

import pytest

from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.published import PUBLISHED, SMALL

# listed once they are there
TO_COME = {
    "remove-outliers",
    "register-neurons",
    "test-time-registers",
    "attention-bias",
    "one-shot",
    "cls-patches-only",
}
TABLES = [table for tables in PUBLISHED.values() for table in tables]


def _rows(name, start):
    (table,) = [table for table in PUBLISHED[name] if table.title.startswith(start)]
    return table.rows


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title[:40])
def test_every_title_names_its_source_and_the_place_in_it(table):
    source, _, rest = table.title.partition(", ")
    assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", source) or source == SMALL
    place, colon, what = rest.partition(": ")
    assert colon and what
    assert re.search(r"\b(table|figure|result)s? \d|\btext\b|\bcode\b", place), place
    assert table.rows


def test_every_experiment_is_one():
    assert set(PUBLISHED) <= set(EXPERIMENTS) | TO_COME
    assert all(PUBLISHED.values())
    assert len({table.title for table in TABLES}) == len(TABLES)


def test_reconstruction_is_the_printed_sum_over_61_batches():
    rows = _rows("probe-reconstruction", SMALL)
    for _, printed, mean in rows:
        assert round(printed / 61, 3) == mean
    assert round(rows[0][1] / rows[1][1], 3) == 1.471


def test_energy_of_the_papers_factors_is_not_what_it_prints():
    ((hours, watts, pue, printed, _),) = _rows("cost", SMALL)
    assert round(hours * watts * pue / 1e6, 3) == 0.634 != printed


def test_logs_round_to_the_papers_accuracies():
    paper = dict(_rows("accuracy", f"{SMALL}, section"))
    for registers, top1, _, parameters in _rows("accuracy", f"{SMALL}, logs"):
        assert abs(paper[registers] - top1) < 0.005
        assert parameters - registers * 384 == 22_059_496  # DeiT-III-S, and a row of its width for each


def test_every_accuracy_and_share_can_be_one():
    for table in (*PUBLISHED["probe-global"], *PUBLISHED["lost"]):
        largest = 1.0 if "in parts of 1" in table.title else 100.0
        numbers = [cell for row in table.rows for cell in row if isinstance(cell, float)]
        assert numbers and all(0 <= number <= largest for number in numbers), table.title
