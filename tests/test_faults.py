"""Storage that fails for a while, or for good, and what damage leaves of a run."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from vit_registers import config as config_lib
from vit_registers.config import Checkpoint, Config
from vit_registers.errors import CheckpointError, ConfigError, TrainingError
from vit_registers.runs import checkpoints
from vit_registers.runs.checkpoint_folder import find_step, list_steps
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.writers import MetricWriter
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training import sharding
from vit_registers.training.state import TrainState

CONFIG = Config(checkpoint=Checkpoint(keep_last=2, keep_best=0, max_failed_saves=3))


def _state(step, size=64):
    mesh = make_mesh(config_lib.Mesh(), devices=jax.devices()[:1])
    rng = np.random.default_rng(step)
    values = {"kernel": rng.normal(size=(size, size)).astype(np.float32)}
    params = jax.device_put(values, sharding.replicated(mesh))
    moments = jax.device_put({"mu": values["kernel"] ** 2}, sharding.replicated(mesh))
    whole = jax.device_put(np.int32(step), sharding.replicated(mesh))
    return TrainState(step=whole, params=params, opt_state=(moments,), ema=None)


def _assert_restored(run, step):
    want = _state(step)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), want)
    with Checkpoints(str(run), CONFIG) as saver:
        assert saver.restorable_step == step
        got = saver.restore(abstract)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(want))


@contextlib.contextmanager
def _files_up_to(size):
    """No file of this process can grow beyond a limit, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def failing(monkeypatch):
    """failing(n): the next n saves fail. Pauses of this thread are noted in failing.pauses, and not made."""
    write, sleep, left = checkpoints.write_manifest, time.sleep, [0]
    this_thread = threading.current_thread()

    def write_manifest(folder):
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        write(folder)

    def failing(number):
        left[0] = number

    def pause(seconds):
        if threading.current_thread() is this_thread:
            failing.pauses.append(seconds)
        else:  # a thread of another library that polls, and must not spin
            sleep(seconds)

    failing.pauses = []
    monkeypatch.setattr(checkpoints, "write_manifest", write_manifest)
    monkeypatch.setattr(time, "sleep", pause)
    return failing


# --- saves that fail -------------------------------------------------------------------------------


def test_a_failed_save_is_reported_and_the_next_one_counts(tmp_path, failing, capsys):
    with Checkpoints(str(tmp_path), CONFIG) as saver:
        saver.save(_state(1), None)
        saver.wait()
        failing(2)
        for step in (2, 3, 4):
            saver.save(_state(step), None)
        saver.save_surely(_state(4), None)
        assert saver.last_saved_step == 4
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "checkpoints/2 could not be written: " in out[0] and "No space left on device" in out[0]
    assert "the run continues, the last good checkpoint is step 1; 2 more in a row end it" in out[0]
    assert "checkpoints/3 could not" in out[1] and "1 more in a row" in out[1]
    assert sorted(list_steps(str(tmp_path))) == [1, 4]
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))
    _assert_restored(tmp_path, 4)


def test_what_a_run_ends_with_is_tried_again_after_growing_pauses(tmp_path, failing):
    config = Config(checkpoint=Checkpoint(max_failed_saves=5))
    failing(3)
    with Checkpoints(str(tmp_path), config) as saver:
        saver.save_surely(_state(7), None)
    assert failing.pauses == [1.0, 2.0, 4.0]
    _assert_restored(tmp_path, 7)


def test_too_many_failures_in_a_row_are_one_clear_error_and_lose_nothing_earlier(tmp_path, failing):
    with Checkpoints(str(tmp_path), CONFIG) as saver:
        for step in (1, 2):
            saver.save(_state(step), None)
    failing(99)
    message = (
        r"checkpoints/3 could not be written: .*No space left.*; nor could 2 more, up to step 4 .*; the last "
        "good checkpoint is step 2"
    )
    with pytest.raises(CheckpointError, match=message), Checkpoints(str(tmp_path), CONFIG) as saver:
        saver.save(_state(3), None)
        saver.save_surely(_state(4), None)
    failing(0)
    assert sorted(list_steps(str(tmp_path))) == [1, 2]
    _assert_restored(tmp_path, 2)
    with pytest.raises(ConfigError, match="max_failed_saves=0"):
        Checkpoints(str(tmp_path), Config(checkpoint=Checkpoint(max_failed_saves=0)))


# TensorStore reports writes that failed once more, to an event loop that is closed (see cli.py).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.own_process
def test_a_disk_that_fills_up_during_a_save_loses_nothing_and_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FIRST_PAUSE_S", 0.01)
    with Checkpoints(str(tmp_path), CONFIG) as saver:
        for step in (1, 2):
            saver.save(_state(step), None)
        saver.wait()
        with _files_up_to(6_000):
            saver.save(_state(3), None)
            with pytest.raises(CheckpointError, match=r"checkpoints/3 could not be written.*is step 2"):
                saver.wait()
        assert sorted(list_steps(str(tmp_path))) == [1, 2]
        saver.save_surely(_state(4), None)
    assert sorted(list_steps(str(tmp_path))) == [2, 4]
    _assert_restored(tmp_path, 4)


def test_an_error_after_the_commit_is_no_failed_save(tmp_path, monkeypatch, capsys):
    with Checkpoints(str(tmp_path), CONFIG) as saver:
        wait = saver._manager.wait_until_finished

        def wait_until_finished():
            wait()
            if list_steps(str(tmp_path)):
                raise OSError(13, "an old checkpoint could not be deleted")

        monkeypatch.setattr(saver._manager, "wait_until_finished", wait_until_finished)
        saver.save(_state(1), None)
        saver.save_surely(_state(1), None)
        assert saver.last_saved_step == 1
    assert capsys.readouterr().out == ""
    _assert_restored(tmp_path, 1)


# --- metrics that cannot be written ----------------------------------------------------------------


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.own_process
def test_metrics_that_cannot_be_written_wait_and_come_in_order(tmp_path, capsys):
    writer = MetricWriter(tmp_path, start_step=0, use_tensorboard=False)
    writer.write(1, {"loss": 0.5})
    with _files_up_to(40):  # the second line would be cut in the middle
        for step in (2, 3):
            writer.write(step, {"loss": 0.5})
    assert [line["step"] for line in _lines(tmp_path)] == [1]
    assert capsys.readouterr().out.count("metrics.jsonl cannot be written: File too large") == 1
    writer.write(4, {"loss": float("nan")})
    writer.close()
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2, 3, 4]
    assert _lines(tmp_path)[-1] == {"step": 4, "loss": None}


@pytest.mark.own_process
def test_metrics_that_still_wait_at_the_end_are_one_clear_error(tmp_path, capsys):
    writer = MetricWriter(tmp_path, start_step=0, use_tensorboard=False)
    with _files_up_to(10), pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: File too"):
        writer.write(1, {"loss": 0.5})
        writer.close()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: Is a directory"):
        MetricWriter(tmp_path, start_step=0, use_tensorboard=False)


# --- damage (tests/runs/test_checkpoints.py has more) ------------------------------------------


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _without(name):
    return lambda folder: (folder / name).unlink()


def _cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9])


def _empty_files(folder):
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        path.write_bytes(b"")


def _flip_everywhere(folder):
    for path in [p for p in (folder / "state").rglob("*") if p.is_file() and p.stat().st_size]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (_empty, 1),
        (_empty_files, 1),
        (_flip_everywhere, 1),
        (_without("manifest.json"), 1),
        (_cut("manifest.json"), 1),
        (_without("state/_METADATA"), 1),
        (_cut("meta/metadata"), 1),
        (_without("state/commit_success.txt"), 1),
        (_without("_CHECKPOINT_METADATA"), 2),  # has nothing that is read
        (_cut("_CHECKPOINT_METADATA"), 2),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_the_newest_checkpoint_damaged(tmp_path, damage, left):
    with Checkpoints(str(tmp_path), CONFIG) as saver:
        for step in (1, 2):
            saver.save(_state(step), None)
    damage(tmp_path / "checkpoints" / "2")
    assert find_step(str(tmp_path), None) == left
    _assert_restored(tmp_path, left)
    with Checkpoints(str(tmp_path), CONFIG) as saver:  # and the run goes over the same steps again
        saver.save_surely(_state(3), None)
    _assert_restored(tmp_path, 3)


# --- kills -------------------------------------------------------------------------------------------


def _size(path):
    return path.stat().st_size if path.exists() else 0


@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="long: set LONG_TESTS=1")
def test_killed_at_20_random_moments(run, start, tmp_path):
    """Three kills, one of them during a save, are in test_resume.py."""
    args = (
        "--config=configs/digits.py:registers=2,steps=600",
        "--config.model.depth=1",
        "--config.checkpoint.every_steps=3",
        "--config.run.eval_every_steps=100",
        "--config.run.log_every_steps=1",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run("train", *args, f"--workdir={whole}")[0] == 0
    rng = random.Random(0)
    for _ in range(20):
        before = _size(killed / "metrics.jsonl")
        program = start("train", *args, f"--workdir={killed}")
        while _size(killed / "metrics.jsonl") == before:  # it takes lines out first
            assert program.poll() is None, program.communicate()
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.5))
        program.send_signal(signal.SIGKILL)
        program.wait()
    assert list_steps(str(killed))[0] < 600
    code, _, err = run("train", *args, f"--workdir={killed}")
    assert code == 0, err
    texts = []
    for path in (whole, killed):
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        texts.append([line for line in lines if "images_per_s" not in line])
    assert texts[0] == texts[1]
