"""The table of k-NN accuracies: baselines of the evaluator, results of finished runs."""

import dataclasses
import json

import pytest

from configs import dino_digits
from tools import knn_table
from vit_registers.config import from_mapping, to_dict
from vit_registers.runs.sweep_cells import metric_values, read_cells
from vit_registers.runs.sweeps import make_sweep


@pytest.fixture
def cells(tmp_path):
    """The cells of the sweep, of which the runs without registers are finished."""
    base = from_mapping(dino_digits.get_config("steps=24").to_dict())
    sweep = make_sweep("dino_digits", base, {}, tmp_path)
    for run in sweep.runs:
        if not run.config.model.num_registers:
            run.folder.mkdir()
            top1 = 0.8 + 0.1 * run.config.run.seed
            metrics = {"knn/top1_k20": top1, "knn/patch/top1_k20": top1 - 0.5}
            result = {"metrics": metrics, "best": None, "time_s": 60.0, "commit": "abc"}
            (run.folder / "result.json").write_text(json.dumps(result))
            (run.folder / "config.json").write_text(json.dumps(to_dict(run.config)))
    return read_cells(sweep)


def test_results_of_finished_runs(cells):
    lines = knn_table.trained(cells)
    assert [line.features for line in lines] == ["cls", "mean patch"] * 2
    text = knn_table.knn_markdown(lines).splitlines()
    assert text[2] == "| trained | num_registers=0 | cls | 90.00 ± 10.00 | 80.00 | 3 | 60.0 |"
    assert text[3] == "| trained | num_registers=0 | mean patch | 40.00 ± 10.00 | 30.00 | 3 | 60.0 |"
    # tabulate --metric=knn/patch
    assert metric_values(cells[0], "knn/patch", "last") == pytest.approx([30.0, 40.0, 50.0])
    assert text[4] == "| trained | num_registers=4 | cls | - |  | 0 |  |"


@pytest.mark.slow
def test_baselines(cells):
    lines = knn_table.baselines([dataclasses.replace(cells[0], runs=cells[0].runs[:1])])
    found = {(line.weights, line.features): line.values for line in lines}
    assert found["-", "raw pixels"] == [pytest.approx(98.05, abs=0.3)]
    assert 30 < found["untrained", "cls"][0] < 60 and 30 < found["untrained", "mean patch"][0] < 60
