"""The reader of what `evaluate --task` has written: of one checkpoint, newest last, with what is left out."""

import json
import os

import pytest

from vit_registers.evaluation.tasks import TASKS
from vit_registers.runs.task_results import TASK_NUMBERS, read_task_results, task_baselines, task_number

KNN = {"task": "knn", "step": 8, "params": "ema", "data": "d:test", "train_data": "d:train"}
KNN |= {"top1_k10": 0.5, "top1_k20": 0.75, "images": 300}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    (tmp_path / "checkpoints" / "8" / "manifest.json").write_text("{}")
    os.utime(tmp_path / "checkpoints" / "8" / "manifest.json", (1000, 1000))
    (tmp_path / "evaluation").mkdir()
    return tmp_path


def _write(run, name, values, *, at_s=2000):
    path = run / "evaluation" / f"{name}.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    os.utime(path, (at_s, at_s))


def test_every_task_has_its_number():
    assert list(TASK_NUMBERS) == list(TASKS)


def test_numbers_have_their_unit_and_error():
    value, error, count = task_number("knn", KNN)
    assert (value, error, count) == (75.0, pytest.approx(100 * (0.75 * 0.25 / 300) ** 0.5), 300)
    depth = {"rmse": 0.5, "rmse_se": 0.02, "test_images": 40}
    assert task_number("depth", depth) == (0.5, 0.02, 40)
    assert task_number("segmentation", {"miou": 0.25, "test_images": 40}) == (25.0, None, 40)
    assert task_number("linear", {"top1": None, "images": 3}) is None
    assert task_number("linear", {"top1": float("nan"), "images": 3}) is None


def test_baselines_have_the_unit_of_their_task():
    values = {"miou": 0.25, "random_backbone_miou": 0.125, "position_only_miou": float("nan")}
    assert task_baselines("segmentation", values) == {"random backbone": 12.5, "position only": None}
    assert task_baselines("knn", KNN) == {"random backbone": None, "position only": None}


def test_the_results_of_one_checkpoint_are_read(run):
    _write(run, "old", KNN | {"top1_k20": 0.1})
    _write(run, "new", KNN | {"data": "e:test"}, at_s=3000)
    _write(run, "step", KNN | {"step": 4})
    _write(run, "params", KNN | {"params": "params"})
    _write(run, "test-8", {"step": 8, "params": "ema", "top1": 0.9})  # of evaluate without a task
    _write(run, "list", [1])
    found, left_out = read_task_results(run, step=8, params="ema")
    assert [(one.file, one.value, one.data, one.train_data) for one in found] == [
        ("old.json", 10.0, "d:test", "d:train"),
        ("new.json", 75.0, "e:test", "d:train"),
    ]
    assert left_out == []


def test_what_cannot_be_used_is_a_line(run):
    _write(run, "before", KNN, at_s=500)
    _write(run, "damaged", "{")
    _write(run, "empty", {key: value for key, value in KNN.items() if not key.startswith("top1")})
    found, left_out = read_task_results(run, step=8, params="ema")
    assert found == []
    assert [line.rpartition("/")[2] for line in left_out] == [
        "before.json is older than the checkpoint of step 8: run its task again",
        "damaged.json cannot be read",
        "empty.json has no number of its task",
    ]


def test_a_run_without_results_has_none(run):
    (run / "evaluation").rmdir()
    assert read_task_results(run, step=8, params="ema") == ([], [])
