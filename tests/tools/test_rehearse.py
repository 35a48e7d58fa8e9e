"""tools/rehearse.py: a short life loses nothing, and what is lost is reported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.digits import CONFIG, make_config
from tools import rehearse
from tools.emulator import PACKAGE
from tools.rehearsal import life
from tools.rehearsal.losses import compare, newest_saved
from vit_registers.train import train

ROOT = Path(__file__).parents[2]
SHORT = ("--steps=60", "--storage_s=3")
TINY = ("--", "--config=configs/digits.py", "--config.model.depth=1", "--config.optimizer.eps=1e-4")
TINY += ("--config.optimizer.warmup_steps=2",)
TOTAL = CONFIG.run.total_steps


def _rehearse(quick, folder, *args):
    command = [sys.executable, "-m", "tools.rehearse", *SHORT, f"--folder={folder}", *args, *TINY]
    return subprocess.run(command, cwd=ROOT, env=quick(), capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_short_life_on_local_disk_loses_nothing(quick, tmp_path):
    done = _rehearse(quick, tmp_path, "--events=preempt,kill,storage")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    events = ["SIGTERM to process 1", "SIGKILL to process 1"]
    if "storage is not lost: this system" not in done.stdout:
        events.append("the disk is full for 3 s")
    events += ["SIGKILL to all", "restart with 2 processes, to the end", "restart with 1 process, to the end"]
    assert [row.startswith(f"| {event}") for row, event in zip(rows, events, strict=True)] == [True] * len(
        rows
    )
    assert "exit codes 0, 0" in rows[0] and "exit codes 3, -9" in rows[1]
    assert "\nlost: nothing\nfinished with 2 processes: equals the undisturbed run bit for bit" in done.stdout


@pytest.mark.slow
def test_a_short_life_in_gs_loses_nothing(quick, tmp_path):
    pytest.importorskip("gcsfs", reason="gs:// requires gcsfs: pip install -e '.[test]'")
    pytest.importorskip(PACKAGE, reason="the emulator of gs:// requires pip install -e '.[test]'")
    done = _rehearse(quick, tmp_path, "--store=gs", "--events=kill,storage")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| the store does not answer for 3 s" in done.stdout
    assert "| the store is gone for 3 s" in done.stdout
    assert "\nlost: nothing\nfinished with 2 processes: equals the undisturbed run bit for bit" in done.stdout


@pytest.mark.slow
def test_a_line_that_is_really_lost_is_reported(monkeypatch, capsys, tmp_path):
    lose_all = life.lose_all

    def lose_all_and_a_line(lived):
        row = lose_all(lived)
        path = Path(lived.run) / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
        return row

    monkeypatch.setattr(life, "lose_all", lose_all_and_a_line)
    arguments = ["rehearse", "--steps=40", "--events=kill", f"--folder={tmp_path}", *TINY]
    monkeypatch.setattr("sys.argv", arguments)
    assert rehearse.main() == 1
    out = capsys.readouterr().out
    for processes in ("2 processes", "1 process"):
        assert f"finished with {processes}: metrics.jsonl: records missing: 1, of steps 1\n" in out
    assert "\nlost:\n" in out


# --- comparisons -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compiled_once):
    """Two equal runs, and one with another seed."""
    folder = tmp_path_factory.mktemp("runs")
    train(CONFIG, str(folder / "one"))
    shutil.copytree(folder / "one", folder / "two")
    train(make_config(run={"seed": 1}), str(folder / "other"))
    return folder


@pytest.fixture
def changed(runs, tmp_path):
    """changed(edit) -> what is lost of a copy of a run, after edit(records) has changed their list."""

    def changed(edit, tolerance=0.0):
        copy = shutil.copytree(runs / "one", tmp_path / "copy", dirs_exist_ok=True)
        records = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
        edit(records)
        (copy / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return compare(str(copy), str(runs / "one"), step=TOTAL, tolerance=tolerance).lost

    return changed


def _first(records, name):
    return next(record for record in records if name in record)


def test_equal_runs_have_lost_nothing_and_times_do_not_count(runs, changed):
    assert compare(str(runs / "two"), str(runs / "one"), step=TOTAL, tolerance=0.0) == ([], 0.0)
    assert changed(lambda records: _first(records, "time_s").update(time_s=1e6)) == []


def test_records_that_are_missing_repeated_swapped_or_other(changed):
    assert changed(lambda records: records.pop(0)) == ["metrics.jsonl: records missing: 1, of steps 4"]
    assert changed(lambda records: records.append(records[0])) == [
        "metrics.jsonl: records too many: 1, of steps 4"
    ]
    assert changed(lambda records: records.append(records.pop(0))) == [
        "metrics.jsonl: the order of the records differs"
    ]

    def add(difference):
        def edit(records):
            _first(records, "train/loss")["train/loss"] += difference

        return edit

    assert changed(add(1e-6)) == ["metrics.jsonl: records that differ: 1, of steps 4"]
    assert changed(add(1e-6), tolerance=1e-4) == []
    assert len(changed(add(1e-2), tolerance=1e-3)) == 1

    def miss_images(number):
        def edit(records):
            record = _first(records, "test/top1")
            record["test/top1"] += number / record["test/images"]

        return edit

    assert len(changed(miss_images(1))) == 1
    assert changed(miss_images(1), tolerance=1e-4) == []
    assert len(changed(miss_images(2), tolerance=1e-3)) == 1


def test_another_final_state_and_a_damaged_one(runs, tmp_path):
    lost, largest = compare(str(runs / "other"), str(runs / "one"), step=TOTAL, tolerance=1e-3)
    assert any(line.startswith(f"the state of step {TOTAL}: ") for line in lost) and largest > 1e-3
    copy = shutil.copytree(runs / "one", tmp_path / "copy")
    (copy / "checkpoints" / str(TOTAL) / "manifest.json").unlink()
    lost, _ = compare(str(copy), str(runs / "one"), step=TOTAL, tolerance=0.0)
    assert lost == [f"the checkpoint of step {TOTAL}: it has no manifest, so it was never finished"]
    assert newest_saved(str(copy)) == 4


def test_arguments_that_cannot_be_used(monkeypatch, capsys, tmp_path):
    (tmp_path / rehearse.LOGS).mkdir()
    for arguments, message in (
        (["--events=kill,flood"], "--events: flood: must be of preempt, kill, "),
        (["--processes=1"], "--processes=1: must be at least 2"),
        ([f"--folder={tmp_path}"], "holds an earlier rehearsal"),
    ):
        monkeypatch.setattr("sys.argv", ["rehearse", *arguments])
        with pytest.raises(SystemExit, match="2"):
            rehearse.main()
        assert message in capsys.readouterr().err
