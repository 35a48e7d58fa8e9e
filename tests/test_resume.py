"""A run that is killed and resumed ends with the state of a run that never stopped, bit for bit."""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.as_users]

STEPS = 120
ARGS = (
    f"--config=configs/digits.py:registers=2,mask=fractal,k=2,steps={STEPS}",
    "--config.model.depth=2",
    "--config.optimizer.ema_decay=0.9",
    "--config.optimizer.warmup_steps=5",
    "--config.checkpoint.every_steps=10",
    "--config.run.eval_every_steps=40",
    "--config.run.log_every_steps=5",
    "--config.model.drop_path=0.1",
    # For other numbers of devices: a size that divides, and an epsilon that does not amplify rounding.
    "--config.data.eval_batch_size=360",
    "--config.optimizer.eps=1e-4",
)
LOADERS = {
    "tfdata": ("--config.data.loader=tfdata",),
    "memory": ("--config.data.loader=memory",),
}


def _metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "images_per_s" not in line]


def _leaves(run):
    path = run / "checkpoints" / str(STEPS) / "state"
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    shapes = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    return jax.tree_util.tree_leaves_with_path(
        reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    )


def _assert_same_end(run, reference):
    assert _metrics(run) == _metrics(reference)
    for (name, a), (_, b) in zip(_leaves(run), _leaves(reference), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(name))


def _wait(program, condition):
    while not condition():
        assert program.poll() is None, program.communicate()[1]
        time.sleep(0.002)


def _steps_logged(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def _is_saving(run):
    return any((run / "checkpoints").glob("*.orbax-checkpoint-tmp"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs that several tests of this module use."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def whole(run, runs, digits_tfds):
    """whole(loader) -> (arguments, folder) of a run that never stopped. Each is trained once."""

    def whole(loader):
        folder, args = runs / loader, (*ARGS, *LOADERS[loader], f"--config.data.data_dir={digits_tfds}")
        if not (folder / "result.json").exists():
            code, _, err = run("train", *args, f"--workdir={folder}")
            assert code == 0, err
        return args, folder

    return whole


@pytest.mark.parametrize("loader", LOADERS)
def test_killed_three_times_once_during_a_save(run, start, whole, tmp_path, loader):
    args, reference = whole(loader)
    killed = tmp_path / "killed"
    moments = [random.Random(loader).randrange(12, 50), random.Random(loader).randrange(60, 100)]
    for moment in [*moments, "save"]:
        program = start("train", *args, f"--workdir={killed}")
        if moment == "save":
            _wait(program, lambda: _is_saving(killed))
        else:
            _wait(program, lambda at=moment: _steps_logged(killed) >= at)
        program.send_signal(signal.SIGKILL)
        program.wait()
        assert not (killed / "checkpoints" / str(STEPS)).exists()
    code, out, err = run("train", *args, f"--workdir={killed}")
    assert code == 0, err
    assert "resumes at step" in out
    _assert_same_end(killed, reference)


def test_sigterm_saves_says_so_and_exits_with_the_code_of_the_flag(run, start, whole, tmp_path):
    args, reference = whole("memory")
    stopped = tmp_path / "stopped"
    program = start("train", *args, f"--workdir={stopped}", "--stop_code=75")
    _wait(program, lambda: _steps_logged(stopped) >= 15)
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate()
    assert program.returncode == 75, err
    assert "SIGTERM: saved at step" in out
    assert run("train", *args, f"--workdir={stopped}", "--stop_code=75")[0] == 0
    _assert_same_end(stopped, reference)
    for params, name in (("params", "test"), ("ema", "test_ema")):
        assert (
            run("evaluate", f"--checkpoint={stopped}", f"--params={params}", f"--out={tmp_path}/{params}")[0]
            == 0
        )
        restored = json.loads(next((tmp_path / params).iterdir()).read_text())
        trained = next(line for line in reversed(_metrics(stopped)) if f"{name}/top1" in line)
        for key in ("loss", "top1", "top5", "images"):
            assert restored[key] == trained[f"{name}/{key}"]


def test_saved_on_8_devices_goes_on_on_1_and_on_2(run, start, whole, tmp_path):
    args, reference = whole("memory")
    begun = tmp_path / "begun"
    program = start("train", *args, f"--workdir={begun}", devices=8)
    _wait(program, lambda: _steps_logged(begun) >= 30)
    program.send_signal(signal.SIGTERM)
    program.communicate()
    for devices in (1, 2):
        moved = shutil.copytree(begun, tmp_path / f"moved-{devices}")
        code, out, err = run("train", *args, f"--workdir={moved}", devices=devices)
        assert code == 0, err
        assert "resumes at step" in out
        for (name, a), (_, b) in zip(_leaves(moved), _leaves(reference), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, err_msg=str(name))
