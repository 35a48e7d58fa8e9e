"""registers-sweep: a row and a point for each run, from its stored results and from features."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from vit_registers.analysis.experiments.registers_sweep import EXPERIMENT
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.run_patterns import matching_runs
from vit_registers.errors import CheckpointError
from vit_registers.models.tokens import TokenLayout

MIOU, RMSE = {0: 0.40, 1: 0.45, 4: 0.44}, {0: 0.5, 1: 0.4, 4: 0.3}


def _write(run, task, values, step=8):
    """A result of evaluate --task that is newer than the checkpoint."""
    manifest = run / "checkpoints" / str(step) / "manifest.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("{}")
    os.utime(manifest, (1000, 1000))
    (run / "evaluation").mkdir(exist_ok=True)
    about = {"task": task, "step": step, "params": "params", "data": "d:test", "train_data": "d:train"}
    (run / "evaluation" / f"{task}-{step}.json").write_text(json.dumps(about | values))


def _subject(run, registers, *, step=8, number=60):
    """`10 - registers` of 40 patches of each image are outliers of norm 100, the others have norm 1."""
    rng = np.random.default_rng(registers)
    label = np.arange(number) % 3
    frozen = rng.normal(size=(number, 2, 8)).astype(np.float32)
    frozen[np.arange(number), :, label] += 3
    norm_BxP = np.ones((number, 40))
    norm_BxP[:, : 10 - registers] = 100.0
    arrays = {"frozen_2xD": frozen, "label": label, "norms_LxT": norm_BxP[:, None]}
    return SimpleNamespace(
        name=f"{run.name}@{step}",
        layout=TokenLayout(has_cls=True, num_registers=registers, summary_grids=(), patch_grid=(5, 8)),
        run=run,
        step=step,
        params_name="params",
        class_names=("ant", "bee", "cow"),
        images="60 images",
        train=None,
        store=SimpleNamespace(read=arrays.__getitem__),
        patch_norms=lambda: norm_BxP,
        outliers=lambda rule: find(norm_BxP, rule),
    )


@pytest.fixture
def runs(tmp_path):
    for count in MIOU:
        run = tmp_path / f"num_registers={count}"
        _write(run, "segmentation", {"miou": MIOU[count], "test_images": 20})
        _write(run, "depth", {"rmse": RMSE[count], "rmse_se": 0.02, "test_images": 20})
    return tmp_path


def _panels(result):
    (picture,) = result.pictures
    return {axes.get_title(loc="left"): axes for axes in picture.figure.axes}


def test_one_figure_has_outliers_accuracy_and_dense_scores_on_one_axis(runs):
    subjects = [_subject(runs / f"num_registers={count}", count) for count in (4, 0, 1)]
    _write(runs / "num_registers=0", "depth", {"rmse": 9.0, "test_images": 3}, step=4)
    subjects.insert(1, _subject(runs / "num_registers=0", 0, step=4))  # an earlier step, which is left out
    result = EXPERIMENT.result(subjects, Options(rule="absolute:50"))
    (table,) = result.tables
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["registers"] for row in rows] == [0, 1, 4] and {row["step"] for row in rows} == {8}
    assert [row["absolute:50, %"] for row in rows] == [25.0, 22.5, 15.0]
    assert [row["largest norm / median"] for row in rows] == [100.0] * 3
    assert [row["segmentation mIoU, %"] for row in rows] == pytest.approx([40, 45, 44])
    assert [row["depth RMSE, m"] for row in rows] == [0.5, 0.4, 0.3]
    assert {row["standard error of depth"] for row in rows} == {0.02}
    assert all(row["k-NN, %"] > 50 and row["linear, %"] is None for row in rows)
    assert result.gaps == [
        "not measured for any model: linear, logistic; vit-registers evaluate --task=NAME measures them"
    ]
    assert result.finding.startswith(
        "With 0, 1, 4 registers (means of 3 models, n = 60 images): outliers 25, 22.5, 15 %; "
    )
    assert result.finding.endswith("segmentation mIoU 40, 45, 44 %; depth RMSE 0.5, 0.4, 0.3 m.")
    panels = _panels(result)
    assert list(panels) == [
        "outliers, %",
        "largest norm / median",
        "k-NN, %",
        "segmentation mIoU, %",
        "depth RMSE, m",
    ]
    mean = panels["segmentation mIoU, %"].lines[-1]
    assert mean.get_xdata().tolist() == [0, 1, 2] and mean.get_ydata().tolist() == pytest.approx([40, 45, 44])
    bottom = panels["depth RMSE, m"]
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["0", "1", "4"]
    assert bottom.get_xlabel() == "registers" and not panels["outliers, %"].get_xlabel()
    assert all(axes.get_xlim() == bottom.get_xlim() for axes in panels.values())


def test_scores_of_other_images_are_not_drawn_and_one_number_gives_no_figure(runs):
    _write(runs / "num_registers=4", "segmentation", {"miou": 0.9, "test_images": 7, "data": "other:test"})
    subjects = [_subject(runs / f"num_registers={count}", count) for count in (0, 4)]
    result = EXPERIMENT.result(subjects, Options(rule="absolute:50"))
    assert any(
        gap.startswith("segmentation: the models were measured on other images") for gap in result.gaps
    )
    assert "segmentation mIoU, %" not in _panels(result) and "depth RMSE, m" in _panels(result)
    alone = EXPERIMENT.result(subjects[:1], Options(rule="absolute:50"))
    assert not alone.pictures and alone.tables
    assert any("all models have 0 registers; give runs with other numbers" in gap for gap in alone.gaps)


def test_a_pattern_names_the_runs_of_a_sweep_with_numbers_in_order(tmp_path, monkeypatch):
    for count in (16, 2, 0):
        (tmp_path / "sweep" / f"num_registers={count}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "sweep" / "logs").mkdir()
    (tmp_path / "sweep" / "table.md").write_text("")
    monkeypatch.chdir(tmp_path)
    names = [f"sweep/num_registers={count}" for count in (0, 2, 16)]
    assert matching_runs("sweep/*") == names
    assert matching_runs("sweep/num*@all") == [f"{name}@all" for name in names]
    for plain in ("sweep/num_registers=2@8", "weights.pth", "gs://bucket/*"):
        assert matching_runs(plain) == [plain]
    with pytest.raises(CheckpointError, match=r"--checkpoint=sweep/x\*: no run folder matches sweep/x\*"):
        matching_runs("sweep/x*")
