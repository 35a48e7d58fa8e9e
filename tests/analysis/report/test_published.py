"""Published numbers name their source and place; what was computed from them is right."""

import re
import tomllib
from pathlib import Path

import pytest

from vit_registers.analysis.experiments.catalog import EXPERIMENTS
from vit_registers.analysis.experiments.experiment import SMALL
from vit_registers.analysis.published.tables import published_tables, read_rows

ROOT = Path(__file__).parents[3]
TABLES = [table for tables in published_tables().values() for table in tables]
ROWS = read_rows()


def _table(name, start):
    (table,) = [table for table in published_tables()[name] if table.title.startswith(start)]
    return table


def test_every_row_has_a_source_a_place_and_a_known_experiment():
    assert len(ROWS) == 298
    for row in ROWS:
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", row["source"]) or row["source"] == SMALL, row
        assert re.search(r"\b(table|figure|section)s? \d|\btext\b|\bcode\b", row["where"]), row
        assert row["experiment"] in EXPERIMENTS, row
        assert row["note"] and row["metric"], row
        assert row["confirmed"] == ("yes" if row["value"] else "no"), row
    keys = [tuple(row[name] for name in row if name not in ("value", "confirmed")) for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_tables_have_every_number():
    assert all(published_tables().values())
    assert len({table.title for table in TABLES}) == len(TABLES)
    cells = [cell for table in TABLES for row in table.rows for cell in row[table.columns[0] == "setting" :]]
    assert sum(cell is not None for cell in cells) == sum(bool(row["value"]) for row in ROWS)


def test_files_are_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"] == {"vit_registers.analysis.published": ["*.csv"]}
    assert len(list((ROOT / "vit_registers/analysis/published").glob("*.csv"))) == 6


def test_reconstruction_is_the_printed_sum_over_61_batches():
    rows = _table("probe-reconstruction", SMALL).rows
    for _, printed, mean in rows:
        assert round(printed / 61, 3) == mean
    assert round(rows[0][1] / rows[1][1], 3) == 1.471


def test_energy_of_the_papers_factors_is_not_what_it_prints():
    ((hours, watts, pue, printed, _),) = _table("cost", SMALL).rows
    assert round(hours * watts * pue / 1e6, 3) == 0.634 != printed


def test_logs_round_to_the_papers_accuracies():
    paper = dict(_table("accuracy", f"{SMALL}, section").rows)
    for setting, top1, _, parameters in _table("accuracy", f"{SMALL}, logs").rows:
        assert abs(paper[setting] - top1) < 0.005
        registers = int(setting.removesuffix(" registers"))
        assert parameters - registers * 384 == 22_059_496  # DeiT-III-S, and a row of its width for each


@pytest.mark.parametrize("name", ["probe-global", "lost"])
def test_every_accuracy_and_share_can_be_one(name):
    for table in published_tables()[name]:
        largest = 1.0 if "in parts of 1" in table.title else 100.0
        numbers = [cell for row in table.rows for cell in row if isinstance(cell, float)]
        assert numbers and all(0 <= number <= largest for number in numbers), table.title
