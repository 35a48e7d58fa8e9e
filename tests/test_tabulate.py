"""The tables of a sweep: statistics by hand and by scipy, missing runs, baselines, published numbers."""

import csv
import json
import math
import re

import jax
import numpy as np
import pytest
import scipy.stats

from vit_registers import tabulate
from vit_registers.config import to_dict
from vit_registers.errors import ConfigError
from vit_registers.models.params import abstract_model
from vit_registers.runs import sweep_cells, sweeps
from vit_registers.runs.sweep_differences import paired_difference, paired_differences

TOP1 = ((0.5, 0.75), (0.25, 0.5), (0.125, 0.125), (0.5, 0.625))  # of each cell with seeds 0 and 1

MORE = """
def label(point, arg):
    return {"positions": point["model.positions"].upper(), "R": str(point["model.num_registers"])}

def baseline(arg):
    return {"positions": "NONE", "R": "0"}

def published(arg):
    cell = {"positions": "LEARNED", "R": "2"}
    return [(cell, 61.5, "arXiv:0, table 1"), ({"positions": "X"}, 3.0, "a book")]
"""


@pytest.fixture
def finish():
    """finish(run, top1): its folder becomes that of a finished run."""

    def finish(run, top1, **changes):
        result = {
            "step": 24,
            "total_steps": 24,
            "metrics": {"test/top1": top1, "test/loss": 1.0, "real/top1": top1 / 2},
            "best": {
                "evaluator": "test",
                "top1": 1.0,
                "step": 8,
                "metrics": {"test/top1": 1.0, "real/top1": 0.9},
            },
            "time_s": 10.0 + run.config.run.seed,
            "images_per_s": 100.0,
            "parameters": 3850 + run.config.model.num_registers,
            "platform": {"platform": "cpu", "device_kind": "cpu", "count": 1},
            "versions": {"jax": "1.2.3", "python": "3.11.0"},
            "commit": "abc+changes",
        }
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps(to_dict(run.config)))
        (run.folder / "result.json").write_text(json.dumps(result | changes))

    return finish


@pytest.fixture
def work(make, finish):
    """A sweep that is finished."""
    work = make()
    for run in work.runs:
        finish(run, TOP1[run.index % 4][run.config.run.seed])
    return work


def _rows(work, which="last", metric="test"):
    cells = sweep_cells.read_cells(work)
    labels = work.call("baseline", None)
    base = cells[0] if labels is None else sweep_cells.find_cell(cells, labels, "config", "baseline()")
    rows = sweep_cells.make_rows(cells, base, work.call("published", []), metric=metric, which=which)
    return rows, cells, base


def test_mean_deviation_and_difference_are_those_of_numpy(work):
    rows, _, _ = _rows(work)
    assert [row.labels for row in rows] == [
        {"positions": p, "num_registers": r} for p in ("learned", "none") for r in ("0", "2")
    ]
    base = 100.0 * np.array(TOP1[0])
    for row, top1 in zip(rows, TOP1, strict=True):
        values = 100.0 * np.array(top1)
        np.testing.assert_allclose((row.mean, row.std), (values.mean(), values.std(ddof=1)), rtol=1e-12)
        assert (row.num_runs, row.num_wanted, row.time_s) == (2, 2, 10.5)
        if row is rows[0]:
            assert (row.difference, row.difference_std) == (None, None)
            continue
        pooled = np.sqrt((values.var(ddof=1) + base.var(ddof=1)) / 2)
        np.testing.assert_allclose(row.difference, values.mean() - base.mean(), rtol=1e-12)
        np.testing.assert_allclose(row.difference_std, (values.mean() - base.mean()) / pooled, rtol=1e-12)
    for row, run in zip(rows, work.runs, strict=False):
        shapes = jax.tree.leaves(abstract_model(run.config.model)[1])
        assert row.parameters == sum(math.prod(leaf.shape) for leaf in shapes)


def test_statistics_that_are_undefined():
    assert sweep_cells.mean_std([]) == (None, None)
    assert sweep_cells.mean_std([3.0]) == (3.0, None)
    assert sweep_cells.compare([3.0], [1.0, 2.0]) == (1.5, None)
    assert sweep_cells.compare([], [1.0, 2.0]) == (None, None)
    assert sweep_cells.compare([3.0, 3.0], [1.0, 1.0]) == (2.0, None)
    assert sweep_cells.compare([2.0, 4.0], [1.0, 1.0]) == (2.0, pytest.approx(2.0))
    assert math.isclose(sweep_cells.mean_std([1.0, 2.0, 4.0])[1], np.std([1, 2, 4], ddof=1))


def test_missing_runs_are_counted_and_never_invented(make, finish):
    work = make()
    for run in (work.runs[0], work.runs[4], work.runs[1]):
        finish(run, 0.5)
    rows, cells, base = _rows(work)
    text = tabulate.markdown(rows, base.labels, title="test top-1 in % (last)")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == [
        *("positions", "num_registers", "test top-1 in % (last)", "runs"),
        *("difference", "in std", "parameters", "time, s"),
    ]
    assert lines[2] == ["learned", "0", "50.00 ± 0.00", "2", "baseline", "", "3,850", "10.5"]
    assert lines[3] == ["learned", "2", "50.00 ± -", "1 of 2", "+0.00", "-", "3,882", "10.0"]
    assert lines[4] == ["none", "0", "-", "0 of 2", "-", "-", "3,770", "-"]
    notes = tabulate.notes(cells, base, [], config="configs/x.py", which="last")
    assert "3 of 8 runs finished; 31 s of training in total" in notes
    (work.runs[2].folder / "checkpoints" / "4").mkdir(parents=True)
    (work.runs[2].folder / "config.json").write_text(json.dumps(to_dict(work.runs[3].config)))
    with pytest.raises(ConfigError, match=r"holds a run of another config: model\.num_registers"):
        _rows(work)


def test_config_file_says_labels_baseline_and_published_numbers(work, config, make):
    config.write_text(config.read_text() + MORE)
    rows, cells, base = _rows(make())
    assert base.labels == {"positions": "NONE", "R": "0"}
    assert rows[0].difference == pytest.approx(50.0)
    assert [row.published for row in rows] == [None, 61.5, None, None]
    text = tabulate.markdown(rows, base.labels, title="test top-1 in % (last)")
    assert (
        "| LEARNED | 2 | 37.50 ± 17.68 | 2 | +25.00 | +2.00 | 3,882 | 10.5 | 61.5 | arXiv:0, table 1 |"
        in text
    )
    notes = tabulate.notes(cells, base, make().call("published", []), config="c", which="last")
    assert "Published, but no cell of this sweep: positions=X: 3 (a book)" in notes
    for before, after, message in (
        # of another length, as Python takes a file of equal length, written in the same second, for the same
        ('"R": "0"}', '"R": "10"}', r"baseline\(\) returns positions=NONE, R=10, which no cell has"),
        (
            'point["model.positions"].upper()',
            '"same"',
            r"label\(\) returns positions=same, R=0 for two cells",
        ),
    ):
        other = config.read_text()
        assert before in other
        config.write_text(other.replace(before, after))
        with pytest.raises(ConfigError, match=message):
            _rows(make())
        config.write_text(other)


def test_paired_differences_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for count in (2, 3, 10):
        values, others = rng.normal(size=(2, count))
        expected = scipy.stats.ttest_rel(values, others)
        interval = expected.confidence_interval(0.95)
        mean, half_width, p = paired_difference(values, others)
        np.testing.assert_allclose(
            (mean - half_width, mean + half_width, p),
            (interval.low, interval.high, expected.pvalue),
            rtol=1e-9,
        )
    assert paired_difference([], []) == (None, None, None)
    assert paired_difference([3.0], [1.0]) == (2.0, None, None)
    assert paired_difference([3.0, 4.0], [1.0, 2.0]) == (2.0, None, None)


def test_cells_are_compared_by_the_seeds_that_both_have(make, finish):
    """The first cell lacks seed 1, the third has both: only seed 0 is paired."""
    work = make()
    for run in work.runs:
        if run.index != 4:
            finish(run, TOP1[run.index % 4][run.config.run.seed])
    cells = sweep_cells.read_cells(work)
    labels = [cell.labels for cell in cells]
    pairs = [(labels[1], labels[3]), (labels[0], labels[2])]
    both, one = paired_differences(cells, pairs, config="c", metric="test", which="last")
    differences = 100 * np.subtract(TOP1[1], TOP1[3])
    assert (both.num_seeds, one.num_seeds) == (2, 1)
    assert both.mean == pytest.approx(differences.mean())
    assert one.mean == pytest.approx(100 * (TOP1[0][0] - TOP1[2][0]))
    assert (one.half_width, one.p) == (None, None)
    text = tabulate.markdown_differences([both, one], unit="points")
    assert "| cell | minus | difference, points | 95 % interval | p | seeds |" in text
    low, high = both.mean - both.half_width, both.mean + both.half_width
    row = f"| positions=learned, num_registers=2 | positions=none, num_registers=2 | {both.mean:+.2f} | "
    assert f"{row}{low:+.2f} to {high:+.2f} | {both.p:.2g} | 2 |" in text
    assert "one below 0.025 is significant at 5 %" in text
    for pair, message in (
        (({"positions": "x"}, labels[0]), r"comparisons\(\) returns positions=x, which no cell has"),
        ((labels[0],), "two dicts of labels are required"),
        (("a", "b"), "two dicts of labels are required"),
    ):
        with pytest.raises(ConfigError, match=message):
            paired_differences(cells, [pair], config="c", metric="test", which="last")


def test_best_and_other_evaluators(work, finish):
    assert sweep_cells.default_metric(sweep_cells.read_cells(work)) == "test"
    assert [row.mean for row in _rows(work, which="best")[0]] == [100.0] * 4
    assert [row.mean for row in _rows(work, which="best", metric="real")[0]] == [90.0] * 4
    assert _rows(work, metric="real")[0][0].mean == pytest.approx(31.25)
    with pytest.raises(ConfigError, match=r"--metric=v2: .* has only test, real"):
        _rows(work, metric="v2")


@pytest.mark.parametrize("change", [{"test/loss": None}, {"test/non_finite": 2, "test/images": 9}])
def test_evaluations_that_are_not_finite_are_left_out_and_counted(make, finish, change):
    work = make()
    for run in work.runs:
        finish(run, TOP1[run.index % 4][run.config.run.seed])
    path = work.runs[0].folder / "result.json"
    result = json.loads(path.read_text())
    result["metrics"] |= {"test/top1": 1.0, **change}
    path.write_text(json.dumps({**result, "best": None}))
    for which, mean in (("last", 75.0), ("best", 100.0)):
        rows, cells, _ = _rows(work, which=which)
        assert (rows[0].mean, rows[0].std, rows[0].num_runs, rows[0].num_wanted) == (mean, None, 1, 2)
        (line,) = sweep_cells.left_out(cells, "test", which)
        assert line.endswith("not finite: 1 of 2 runs of positions=learned, num_registers=0")
    assert sweep_cells.left_out(cells, "real", "last") == []
    assert "not finite" in sweeps.result_text(sweeps.read_result(work.runs[0]), work.runs[0].best)
    assert re.fullmatch(
        r"top1 0\.\d{4} \(1\d s\)", sweeps.result_text(sweeps.read_result(work.runs[1]), work.runs[1].best)
    )


def test_without_a_finished_run_the_table_says_what_is_planned(make):
    rows, cells, base = _rows(make())
    assert sweep_cells.default_metric(cells) == "test"
    assert [(row.mean, row.num_runs, row.num_wanted) for row in rows] == [(None, 0, 2)] * 4
    assert "0 of 8 runs finished" in tabulate.notes(cells, base, [], config="c", which="last")


def test_command_line(work, launch, config, tmp_path):
    (work.runs[7].folder / "result.json").unlink()
    program = launch(
        *("-m", "vit_registers.tabulate", f"--config={config}", f"--workdir={tmp_path}/work"),
        f"--csv={tmp_path}/tables/table.csv",
    )
    out, err = program.communicate(timeout=60)
    assert (program.returncode, err) == (0, "")
    assert "| none | 2 | 50.00 ± - | 1 of 2 | -12.50 | - | 3,802 | 10.0 |" in out
    assert "sqrt((s² + s_baseline²) / 2)" in out
    for line in (
        f"Config: {config}; 7 of 8 runs finished; 73 s of training in total.",
        "Commit: abc+changes",
        "Devices: 1 x cpu (cpu)",
        "Versions: jax 1.2.3, python 3.11.0",
    ):
        assert line in out.splitlines()
    with (tmp_path / "tables" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["num_runs"] for row in rows] == ["2", "2", "2", "1"]
    assert rows[3]["std"] == ""
    assert re.fullmatch(r"17\.67766952966\d*", rows[0]["std"])


def test_two_commits_are_told_with_their_counts(make, finish):
    work = make()
    finish(work.runs[0], 0.5)
    finish(work.runs[1], 0.5, commit=None)
    cells = sweep_cells.read_cells(work)
    text = tabulate.notes(cells, cells[0], [], config="c", which="best")
    assert "Commit: abc+changes (1 runs); unknown (1 runs)" in text
    assert "chosen on the same split" in text
    assert sweeps.read_result(work.runs[2]) is None
