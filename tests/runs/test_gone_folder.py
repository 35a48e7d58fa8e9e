"""A run folder that is removed, renamed or replaced during a run, and evaluations that are missing."""

import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from tests.fixtures.digits import flags
from vit_registers.config import Checkpoint, Config, Mesh
from vit_registers.errors import CheckpointError
from vit_registers.runs.checkpoint_folder import find_step_damage, list_steps
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runtime.mesh import make_mesh
from vit_registers.storage.run_lock import FILE, RunLock, lock_holder
from vit_registers.training import sharding
from vit_registers.training.state import TrainState

# Cancelled writes are reported once more, to an event loop that is closed (see cli.py).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = Config(checkpoint=Checkpoint(keep_last=2, keep_best=0))
GONE = "was removed, renamed, replaced or emptied while this run was writing in it"


def _state(step):
    whole = sharding.replicated(make_mesh(Mesh(), devices=jax.devices()[:1]))
    params = {"kernel": np.full((8, 8), step, np.float32)}
    values = {"step": np.int32(step), "params": params, "opt_state": ()}
    return TrainState(**jax.device_put(values, whole), ema=None)


@pytest.fixture
def saver(tmp_path):
    """The Checkpoints of a running run, with step 1 saved."""
    run = tmp_path / "run"
    run.mkdir()
    with RunLock(run) as lock, Checkpoints(str(run), CONFIG, lock) as saver:
        (run / "config.json").write_text("{}")
        saver.save(_state(1), None)
        saver.wait()
        yield saver


def _rename(run):
    run.rename(run.with_name("moved"))


def _replace(run):
    _rename(run)
    (run / "checkpoints" / "2").mkdir(parents=True)  # of another start


def _empty(run):
    shutil.rmtree(run)
    run.mkdir()


def _replace_by_file(run):
    shutil.rmtree(run)
    run.write_text("")


@pytest.mark.parametrize("end", [shutil.rmtree, _rename, _replace, _empty, _replace_by_file])
@pytest.mark.parametrize("how", ["save", "save_surely", "check_folder"])
def test_a_folder_that_is_gone_is_noticed(tmp_path, saver, end, how):
    run = tmp_path / "run"
    end(run)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match=rf"{run} {GONE}.*the same command with that --workdir"):
        saver.check_folder() if how == "check_folder" else getattr(saver, how)(_state(2), None)
    assert sorted(run.rglob("*")) == before
    if (tmp_path / "moved").exists():
        assert find_step_damage(str(tmp_path / "moved"), 1) is None


def test_a_folder_that_goes_during_a_save_is_not_made_again(tmp_path, saver):
    saver.save(_state(2), None)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    with pytest.raises(CheckpointError, match=GONE):
        saver.save_surely(_state(3), None)


def test_checkpoints_that_are_removed_are_said_and_saved_again(tmp_path, saver, capsys):
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints")
    saver.save(_state(2), None)
    saver.wait()
    assert list_steps(str(run)) == [2]
    shutil.rmtree(run / "checkpoints" / "2")
    saver.save_surely(_state(2), None)
    assert find_step_damage(str(run), 2) is None
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" was removed during the run")[0] for line in out] == [
        f"checkpoint {run}/checkpoints/{step}" for step in (1, 2)
    ]


def test_a_lock_that_is_removed_is_taken_again(tmp_path, saver):
    run = tmp_path / "run"
    (run / FILE).unlink()
    assert lock_holder(run) is None
    saver.save_surely(_state(2), None)
    assert lock_holder(run) is not None
    (run / FILE).unlink()
    with RunLock(run), pytest.raises(CheckpointError, match="in use by process"):
        saver.save(_state(3), None)


# --- runs ------------------------------------------------------------------------------------

ARGS = flags("steps=12", run={"eval_every_steps": 3}, checkpoint={"every_steps": 3, "keep_last": 5})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(compiled_once, run_here, runs):
    """A run that nothing interrupts. It is trained once."""
    if not (runs / "whole" / "result.json").exists():
        code, _, err = run_here("train", *ARGS, f"--workdir={runs / 'whole'}")
        assert code == 0, err
    return runs / "whole"


def _remove(run):
    while run.exists():  # a running save writes files into it
        shutil.rmtree(run, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize("end", [_remove, _rename])
def test_a_run_whose_folder_is_gone_ends_with_a_line(run_here, tmp_path, end):
    run = tmp_path / "run"

    def wait_and_end():
        while not (run / "checkpoints" / "3").exists():
            time.sleep(0.01)
        end(run)

    thread = threading.Thread(target=wait_and_end)
    thread.start()
    code, out, err = run_here("train", *ARGS, f"--workdir={run}")
    thread.join()
    assert (code, err.count("\n")) == (2, 1), err
    assert GONE in err
    assert "run folder" not in out
    assert not (run / "result.json").exists()
    assert list_steps(str(run)) == []


def _results(run):
    result = json.loads((run / "result.json").read_text())
    return result["metrics"], result["best"], result.get("missing_evaluations")


def _remove_file(run):
    (run / "metrics.jsonl").unlink()


def _cut(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shorten", "lost", "taken"), [(_remove_file, [6], [3, 9]), (_cut, [], [6, 9])], ids=["removed", "cut"]
)
def test_evaluations_that_are_missing_before_a_resume_are_said(
    run_here, whole, tmp_path, shorten, lost, taken
):
    run = shutil.copytree(whole, tmp_path / "run")
    for step in (12, *lost):
        shutil.rmtree(run / "checkpoints" / str(step))
    shorten(run)
    code, out, err = run_here("train", *ARGS, f"--workdir={run}")
    assert code == 0, err
    missing = f"missing: those of steps {', '.join(map(str, lost))}; " if lost else ""
    found = f"taken from checkpoints: those of steps {', '.join(map(str, taken))}"
    line = f"{run}/metrics.jsonl lacks evaluations of the steps up to 9; {missing}{found}"
    assert out.splitlines().count(line) == 1, out
    metrics, best, missing = _results(run)
    assert (metrics, best) == _results(whole)[:2]
    assert missing == (lost or None)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reference = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in reference if "test/top1" in line and line["step"] not in lost]
    assert [line for line in lines if "test/top1" in line] == evaluated


def test_a_run_does_not_write_over_what_is_not_of_a_run(run_here, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    code, _, err = run_here("train", *ARGS, f"--workdir={tmp_path}")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path} holds a config.json that is not of a run" in err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name", ["config.json", "result.json", "parameters.txt", "metrics.jsonl", "checkpoints"]
)
def test_a_folder_or_file_in_place_of_what_a_run_writes_is_one_line(run_here, tmp_path, name):
    (tmp_path / name).write_text("") if name == "checkpoints" else (tmp_path / name).mkdir()
    code, _, err = run_here("train", *ARGS, f"--workdir={tmp_path}")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"{tmp_path}/{name}" in err
