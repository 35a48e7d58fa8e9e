"""metrics.jsonl has one reader, which takes what kills, full disks and other programs leave."""

import json
import os
import shutil
import types
from pathlib import Path

import pytest

from tools.bench import startup as bench_startup
from vit_registers.analysis.experiments import curves
from vit_registers.analysis.options import Options
from vit_registers.errors import DataError, TrainingError
from vit_registers.objectives.base import Best
from vit_registers.runs import results, sweeps
from vit_registers.runs.metrics_log import FILE, read_records
from vit_registers.runs.writers import MetricWriter

LAYOUT = types.SimpleNamespace(num_registers=0, num_summaries=0)
TOP1 = Best("top1", label="top-1")

LINES = [
    {"step": 10, "train/loss": 2.5, "train/top1": 0.25},
    {"step": 10, "images_per_s": 10.0, "time_s": 1.0},
    {"step": 20, "val/loss": 2.0, "val/top1": None},
    {"step": 30, "val/loss": 1.5, "val/top1": 0.5},
]
WHOLE = "".join(json.dumps(line) + "\n" for line in LINES).encode()

# What a file holds: whether a line says so, and the records that are left of it.
CONTENTS = {
    "whole": (WHOLE, False, LINES),
    "empty": (b"", False, []),
    "no last end of line": (WHOLE[:-1], False, LINES),
    "last line cut": (WHOLE + b'{"step": 40, "val/lo', False, LINES),
    "last line cut at once": (WHOLE + b"{", False, LINES),
    "last line cut in its step": (WHOLE + b'{"st', False, LINES),
    "zeros of a power loss": (WHOLE + bytes(4096), True, LINES),
    "cut in the middle": (WHOLE[:30] + b"\n" + WHOLE, True, LINES),
    "empty line": (b"\n" + WHOLE, True, LINES),
    "text": (b"not metrics\nat all\n", True, []),
    "text in the last line": (WHOLE + b"not metrics", True, LINES),
    "binary": (bytes(range(256)) * 8, True, []),
    "not UTF-8": (b'{"step": 1, "caf\xe9": 1.0}\n' + WHOLE, True, LINES),
    "UTF-16": (WHOLE.decode().encode("utf-16"), True, []),
    "no step": (b'{"val/loss": 1.0}\n' + WHOLE, True, LINES),
    "step of text": (b'{"step": "7"}\n' + WHOLE, True, LINES),
    "step of yes": (b'{"step": true}\n' + WHOLE, True, LINES),
    "step without end": (b'{"step": 1e999}\n' + WHOLE, True, LINES),
    "a list": (b"[1, 2]\n" + WHOLE, True, LINES),
    "null": (b"null\n" + WHOLE, True, LINES),
    "text for a number": (b'{"step": 1, "val/loss": "low"}\n' + WHOLE, True, LINES),
    "a list for a number": (b'{"step": 1, "val/loss": [1]}\n' + WHOLE, True, LINES),
    "a number that no float has": (b'{"step": 1, "n": 1' + b"0" * 400 + b"}\n" + WHOLE, True, LINES),
    "a number of 5000 digits": (b'{"step": 1, "n": ' + b"9" * 5000 + b"}\n" + WHOLE, True, LINES),
    "deep": (b"[" * 100_000 + b"\n" + WHOLE, True, LINES),
}


@pytest.fixture(params=CONTENTS)
def content(request, tmp_path):
    data, is_damaged, left = CONTENTS[request.param]
    (tmp_path / FILE).write_bytes(data)
    return tmp_path, is_damaged, left


def _curves(*folders):
    subjects = [types.SimpleNamespace(name=folder.name, run=folder, layout=LAYOUT) for folder in folders]
    return curves.EXPERIMENT.result(subjects, Options())


def test_every_reader_takes_the_same_records(content):
    run, is_damaged, left = content
    records, damage = read_records(run)
    assert (records, damage is not None) == (left, is_damaged)
    if is_damaged:
        assert damage.startswith(f"{run / FILE}: ") and damage.endswith("left out") and "\n" not in damage
    result = _curves(run)
    assert len(result.gaps) == (is_damaged or not left)
    assert bool(result.pictures) == bool(left)
    assert {name: step for table in result.tables for _, name, step, _ in table.rows} == (
        {"train/loss": 10, "train/top1, %": 10, "val/loss": 30, "val/top1, %": 30} if left else {}
    )
    last = max((record["step"] for record in left), default=0)
    assert sweeps.last_step(types.SimpleNamespace(folder=run)) == last
    assert bench_startup.steps_logged(run) == last
    assert results.trained_s(run) == (1.0 if left else 0.0)


def test_a_resume_keeps_the_records_up_to_its_step_and_the_damaged_file(content, capsys):
    run, is_damaged, left = content
    before = (run / FILE).read_bytes()
    with MetricWriter(run, start_step=20, use_tensorboard=False) as writer:
        writer.write(30, {"val/loss": 1.0})
    kept = [record for record in left if record["step"] <= 20]
    now = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    assert now == [*kept, {"step": 30, "val/loss": 1.0}]
    out = capsys.readouterr().out
    assert out.count("\n") == is_damaged
    if is_damaged:
        (copy,) = (run / "damaged").iterdir()
        assert copy.read_bytes() == before and str(copy) in out
    assert not list(run.glob("*.tmp"))


def test_a_named_pipe_in_its_place_is_one_line(tmp_path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(DataError, match=rf"{FILE} cannot be read: it is not a regular file"):
        read_records(tmp_path)
    assert _curves(tmp_path).gaps == [
        f"{tmp_path.name}: {tmp_path / FILE} cannot be read: it is not a regular file; move it away"
    ]
    assert sweeps.last_step(types.SimpleNamespace(folder=tmp_path)) == 0


def test_a_folder_in_its_place_is_one_line(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(DataError, match=rf"{FILE} cannot be read: Is a directory"):
        read_records(tmp_path)
    with pytest.raises(TrainingError, match=rf"{FILE} cannot be written: Is a directory"):
        MetricWriter(tmp_path, start_step=0, use_tensorboard=False)
    assert _curves(tmp_path).gaps == [f"{tmp_path.name}: {tmp_path / FILE} cannot be read: Is a directory"]
    assert sweeps.last_step(types.SimpleNamespace(folder=tmp_path)) == 0


def test_a_run_without_metrics_is_a_gap_beside_one_that_has_them(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / FILE).write_bytes(WHOLE)
    result = _curves(tmp_path / "missing", run)
    assert result.gaps == ["missing: no metrics.jsonl: it is not a run, or a converted one"]
    labels = {line.get_label() for picture in result.pictures for line in picture.figure.axes[0].lines}
    assert {label.partition(":")[0] for label in labels if not label.startswith("_")} == {"run"}


# --- while a run is under way ----------------------------------------------------------------


def _steps(run):
    return [json.loads(line)["step"] for line in (run / FILE).read_text().splitlines()]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_registers.storage.line_file._REMOVAL_S", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_metrics_that_are_removed_are_written_again(run, capsys):
    with MetricWriter(run, start_step=0, use_tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
        (run / FILE).unlink()
        writer.write(2, {"loss": 1.0})
        assert _steps(run) == [1, 2]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"during the run, {run / FILE} was removed: it is written again"


def test_metrics_that_are_removed_shortly_before_the_end_are_written_again(run, monkeypatch):
    monkeypatch.setattr("vit_registers.storage.line_file._REMOVAL_S", 60.0)
    with MetricWriter(run, start_step=0, use_tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
        (run / FILE).unlink()
        writer.write(2, {"loss": 1.0})
        assert not (run / FILE).exists()
    assert _steps(run) == [1, 2]


def test_metrics_that_an_editor_replaced_are_appended_to(run, capsys):
    with MetricWriter(run, start_step=0, use_tensorboard=False) as writer:
        writer.write(1, {"loss": 1.0})
        shutil.copy(run / FILE, run / "new")
        os.replace(run / "new", run / FILE)
        writer.write(2, {"loss": 1.0})
    assert _steps(run) == [1, 2]
    assert "was replaced: lines are written to the new file" in capsys.readouterr().out


def test_metrics_of_a_folder_that_is_gone_are_not_put_into_the_one_in_its_place(run):
    writer = MetricWriter(run, start_step=0, use_tensorboard=False)
    writer.write(1, {"loss": 1.0})
    run.rename(run.with_name("moved"))
    run.mkdir()
    (run / FILE).write_text("")
    writer.write(2, {"loss": 1.0})
    writer.close()
    assert _steps(run.with_name("moved")) == [1, 2]
    assert _steps(run) == []


# --- evaluations that are missing ------------------------------------------------------------


def test_evaluations_come_from_checkpoints_where_metrics_lack_them():
    known = {20: {"loss": 1.0, "top1": 0.5}, 40: {"loss": 0.5, "top1": 0.75}}
    have = [{"step": 40, "val/loss": 0.5, "val/top1": 0.75}, {"step": 40, "val_ema/loss": 0.4}]
    restored, lost = results.complete_evaluations(
        have, evaluators=["val", "real"], steps=(10, 20, 40), known=known
    )
    assert restored == [{"step": 20, "val/loss": 1.0, "val/top1": 0.5}]
    assert lost == [10]
    *_, lost = results.complete_evaluations(
        have, evaluators=["val", "val_ema"], steps=(10, 20, 40), known=known
    )
    assert lost == [10, 20]  # a checkpoint has nothing of the average


def test_a_result_has_what_checkpoints_know_and_names_what_nobody_does(tmp_path):
    Path(tmp_path / FILE).write_text('{"step": 10, "val/loss": 3.0, "val/top1": 0.125}\n')
    results.write_result(
        tmp_path,
        evaluators=["val"],
        total_steps=40,
        params={},
        best=TOP1,
        made={},
        steps=(10, 20, 30, 40),
        known={20: {"top1": 0.75, "loss": 1.0}, 40: {"top1": 0.5, "loss": 2.0}},
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metrics"] == {"val/top1": 0.5, "val/loss": 2.0}
    assert (result["best"]["step"], result["best"]["top1"]) == (20, 0.75)
    assert result["missing_evaluations"] == [30]
