"""result.json: its numbers come from metrics.jsonl, over all starts of a run."""

import json
import subprocess

import jax
import numpy as np
import pytest

from vit_registers.objectives.base import Best
from vit_registers.runs import results
from vit_registers.runs.progress import Progress
from vit_registers.runs.writers import MetricWriter

TOP1 = Best("top1", label="top-1")

RECORDS = [
    {"step": 2, "train/loss": 2.0, "train/top1": 1.0, "train/grad_norm": 1.0},
    {"step": 2, "images_per_s": 10.0, "time_s": 1.0},
    {"step": 4, "test/loss": 1.5, "test/top1": 0.5, "test/images": 9},
    {"step": 4, "real/loss": 1.0, "real/top1": 0.25, "real/images": 9},
    {"step": 6, "images_per_s": 30.0, "time_s": 2.5},
    {"step": 8, "test/loss": 1.0, "test/top1": 0.5, "test/images": 9},
    {"step": 8, "real/loss": 1.0, "real/top1": 0.125, "real/images": 9},
    {"step": 12, "images_per_s": 20.0, "time_s": 4.0},
    {"step": 12, "test/loss": 0.5, "test/top1": 0.25, "test/images": 9},
    {"step": 12, "real/loss": 0.25, "real/top1": 0.5, "real/images": 9},
]


def _write(run, records):
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_last_and_best_of_the_first_evaluator(tmp_path):
    _write(tmp_path, RECORDS)
    params = {"a": np.zeros((2, 3)), "b": np.zeros(4)}
    results.write_result(
        tmp_path,
        evaluators=["test", "real"],
        total_steps=12,
        params=params,
        best=TOP1,
        made=results.made_with("xla"),
        steps=(),
        known={},
    )
    result = json.loads((tmp_path / "result.json").read_text())
    last = {"test/loss": 0.5, "test/top1": 0.25, "test/images": 9}
    assert result["metrics"] == {**last, "real/loss": 0.25, "real/top1": 0.5, "real/images": 9}
    best = result["best"]
    assert (best["evaluator"], best["top1"], best["step"]) == ("test", 0.5, 8)  # the later of equals
    assert best["metrics"]["real/top1"] == 0.125
    assert (result["step"], result["total_steps"], result["parameters"]) == (12, 12, 10)
    assert (result["time_s"], result["images_per_s"]) == (4.0, 20.0)
    assert result["platform"] == {"platform": "cpu", "device_kind": "cpu", "count": jax.device_count()}
    assert set(result["versions"]) == {"jax", "flax", "optax", "numpy", "python"}
    assert list(tmp_path.glob("*.tmp")) == []


def test_training_steps_are_no_evaluations_of_a_split_called_train():
    records = [*RECORDS[:2], {"step": 4, "train/loss": 1.0, "train/top1": 0.5, "train/images": 9}]
    summary = results.summarize_records(records, evaluators=["train"], total_steps=4, best=TOP1)
    assert (summary["best"]["top1"], summary["best"]["step"]) == (0.5, 4)


BROKEN = ({"test/loss": None}, {"test/non_finite": 3}, {"test/loss": float("nan")}, {"test/top1": None})


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: "-".join(map(str, *broken.items())))
def test_an_evaluation_that_is_not_finite_is_never_best(tmp_path, broken):
    perfect = {"test/loss": 0.0, "test/top1": 1.0, "test/images": 9, "test/non_finite": 0}
    records = [*RECORDS, {"step": 14, **perfect, **broken}]
    best = results.summarize_records(records, evaluators=["test", "real"], total_steps=14, best=TOP1)["best"]
    assert (best["top1"], best["step"]) == (0.5, 8)
    _write(tmp_path, records[-1:])
    results.write_result(
        tmp_path, evaluators=["test"], total_steps=14, params={}, best=TOP1, made={}, steps=(), known={}
    )
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["best"] is None and result["metrics"]["test/loss"] in (None, 0.0)


def test_run_that_was_never_evaluated_has_no_best():
    summary = results.summarize_records(RECORDS[:2], evaluators=["test"], total_steps=2, best=TOP1)
    assert (summary["metrics"], summary["best"], summary["time_s"]) == ({}, None, 1.0)


def test_time_goes_on_from_the_last_line_that_was_kept(tmp_path):
    assert results.trained_s(tmp_path) == 0.0
    _write(tmp_path, RECORDS)
    MetricWriter(tmp_path, start_step=8, use_tensorboard=False).close()
    earlier = results.trained_s(tmp_path)
    assert earlier == 2.5
    progress = Progress(
        start_step=8, total_steps=12, batch_size=1, log_every_s=30.0, earlier_s=earlier, is_quiet=True
    )
    assert progress.time_s == earlier
    progress.update(9)
    progress.restart(9)  # an evaluation is part of the time, not of the rate
    first = progress.time_s
    progress.update(10)
    assert earlier < first < progress.time_s < earlier + 1.0


@pytest.fixture
def checkout(tmp_path):
    """git(...) in a checkout with a package in it."""

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init", "--quiet")
    return git, package


def test_commit_of_the_checkout(checkout, monkeypatch):
    git, package = checkout
    assert results.commit(package) is None  # not known to git
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    head = git("rev-parse", "HEAD")
    assert results.commit(package) == head
    (package.parent / "notes.txt").write_text("")  # not of the package
    assert results.commit(package) == head
    (package / "more.py").write_text("")
    assert results.commit(package) == head + "+changes"
    (package / "more.py").unlink()
    (package / "__init__.py").write_text("x = 1\n")
    assert results.commit(package) == head + "+changes"
    monkeypatch.setenv("PATH", "")
    assert results.commit(package) is None  # no git


def test_what_ranks_data_without_the_first_metric():
    best = Best("top1", label="top-1", otherwise=Best("rmse", label="RMSE", is_higher_better=False))
    assert best.score({"top1": 0.5, "rmse": 2.0}) == 0.5
    assert best.score({"rmse": 2.0}) == -2.0
    assert best.score({"rmse": float("nan")}) is None
    assert best.score({"loss": 2.0}) is None
    assert best.among({"rmse"}).label == "RMSE" and best.among({"loss"}) is best
    record = {"step": 2, "test/rmse": 2.0}
    found = results.summarize_records([record], evaluators=["test"], total_steps=2, best=best)
    assert (found["best"]["evaluator"], found["best"]["rmse"]) == ("test", 2.0)
