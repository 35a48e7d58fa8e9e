"""Segmentation and depth as evaluators of a run: their data, their numbers, and what is not finite."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.fixtures.digits import flags, make_config
from vit_registers.config import DepthSettings, LogisticSettings, SegmentationSettings, Tasks
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.data.sources import digit_scenes
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.catalog import make_evaluators
from vit_registers.evaluation.while_training import make_task_evaluators
from vit_registers.models.params import init_params
from vit_registers.runtime.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("few_scenes", "compiled_once")
SCENES = "digit_scenes:test"
CONFIG = make_config()
SMALL = {
    "segmentation": SegmentationSettings(data=SCENES, num_steps=6, batch_size=8),
    "depth": DepthSettings(data=SCENES, num_steps=6, batch_size=8, num_bins=8),
}
RUN = {
    "tasks": {
        "while_training": "('segmentation','depth')",
        **{f"{task}.data": SCENES for task in SMALL},
        **{f"{task}.num_steps": 6 for task in SMALL},
        **{f"{task}.batch_size": 8 for task in SMALL},
    },
    "run": {"eval_every_steps": 2, "total_steps": 4, "use_tensorboard": False},
    "checkpoint": {"every_steps": 2},
}


@pytest.fixture
def few_scenes(monkeypatch):
    for split, number in (("train", 20), ("test", 7)):
        monkeypatch.setitem(digit_scenes.NUM_SCENES, split, number)


def _make(tasks, devices=8, config=CONFIG):
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    return mesh, make_task_evaluators(tasks, config.model, config.data, {}, mesh)


def _params(mesh, config=CONFIG):
    params = jax.jit(lambda: init_params(config.model, key=jax.random.key(1)))()
    return {"vit": jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))}


@pytest.mark.parametrize("task", [*SMALL])
def test_data_that_do_not_fit_are_one_line_before_the_first_step(task):
    def fails(error, message, **data):
        own = dataclasses.replace(SMALL[task], **data)
        with pytest.raises(error, match=message) as raised:
            _make(Tasks(while_training=(task,), **{task: own}))
        assert "\n" not in str(raised.value)

    message = rf"tasks\.while_training has {task}, .* tasks\.{task}\.data=digit_scenes:test is always there"
    fails(ConfigError, message, data=None)
    fails(ConfigError, rf"tasks\.{task}\.data=digit_scenes: must be NAME:SPLIT", data="digit_scenes")
    fails(ConfigError, rf"tasks\.{task}\.train_data=x: must be NAME:SPLIT", train_data="x")
    fails(DataError, "has no split 'tset'", data="digit_scenes:tset")
    fails(DataError, "has no split 'half'", train_data="digit_scenes:half")


def test_they_do_not_rank_the_checkpoints():
    mesh, split = make_mesh(CONFIG.mesh), EvalSplit(open_data(CONFIG), "test")
    tasks = Tasks(while_training=("depth", "segmentation"), **SMALL)
    made = make_evaluators(CONFIG.objective, CONFIG.model, CONFIG.data, {"test": split}, mesh, tasks)
    assert [*made] == ["test", "depth", "segmentation"]


@pytest.mark.slow
@pytest.mark.parametrize("task", [*SMALL])
def test_devices_change_nothing_and_calls_do_not_depend_on_each_other(task):
    tasks = Tasks(while_training=(task,), **{task: SMALL[task]})
    (mesh, made), (alone, single) = _make(tasks), _make(tasks, devices=1)
    params = _params(mesh)
    found = made[task](params)
    made[task](jax.tree.map(lambda x: x + 0.1, params))
    assert made[task](params) == found
    for name, value in single[task](_params(alone)).items():
        assert found[name] == pytest.approx(value, abs=2e-3), name
    assert (found["images"], found["non_finite"]) == (7, 0)


def test_features_that_are_not_finite_do_not_end_the_run(capsys):
    config = make_config()
    tasks = Tasks(
        while_training=(*SMALL, "logistic"), logistic=LogisticSettings(num_c=2, max_iterations=5), **SMALL
    )
    mesh = make_mesh(config.mesh)
    splits = {"test": EvalSplit(open_data(config), "test")}
    made = make_task_evaluators(tasks, config.model, config.data, splits, mesh)
    params = jax.tree.map(lambda x: x * jnp.nan, _params(mesh))
    with jax.set_mesh(mesh):
        found = {name: evaluate(params) for name, evaluate in made.items()}
    assert math.isnan(found["segmentation"]["miou"]) and math.isnan(found["depth"]["rmse"])
    assert math.isnan(found["logistic"]["top1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("not finite" in line for line in lines)


def _evaluations(run):
    """{step: {"segmentation/miou": ...}} of metrics.jsonl, without the evaluations of the objective."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        own = {key: value for key, value in record.items() if key.startswith(("segmentation/", "depth/"))}
        if own:
            found.setdefault(record["step"], {}).update(own)
    return found


@pytest.mark.slow
def test_a_run_has_the_numbers_of_evaluate_also_when_it_is_resumed(tmp_path, run_here):
    run = tmp_path / "run"
    code, out, err = run_here("train", *flags("steps=4", **RUN), f"--workdir={run}")
    assert code == 0, err
    found = _evaluations(run)
    assert [*found] == [2, 4] and "step 2/4  segmentation: miou " in out
    for task, keys in (("segmentation", ("miou", "pixel_accuracy")), ("depth", ("rmse", "abs_rel", "a1"))):
        code, _, err = run_here("evaluate", f"--checkpoint={run}", "--step=2", f"--task={task}")
        assert code == 0, err
        (file,) = (run / "evaluation").glob(f"{task}-digit_scenes-test-2-*.json")
        result = json.loads(file.read_text())
        assert (result["data"], result["train_data"]) == (SCENES, "digit_scenes:train")
        for key in keys:
            assert result[key] == pytest.approx(found[2][f"{task}/{key}"], abs=1e-6), key
        assert found[2][f"{task}/images"] == result["test_images"] == 7
        # The setting and the flag are one result.
        code, _, err = run_here(
            "evaluate", f"--checkpoint={run}", "--step=2", f"--task={task}", f"--data={SCENES}"
        )
        assert code == 0 and len([*(run / "evaluation").glob(f"{task}-*.json")]) == 1, err
    finished = json.loads((run / "result.json").read_text())
    assert finished["best"]["evaluator"] == "test"
    shutil.rmtree(run / "checkpoints" / "4")
    code, out, err = run_here("train", *flags("steps=4", **RUN), f"--workdir={run}")
    assert code == 0 and "resumes at step 2" in out, err
    assert _evaluations(run) == found


@pytest.mark.slow
def test_self_distillation_measures_its_teacher(tmp_path, run_here):
    settings = (
        "--config.tasks.while_training=('depth',)",
        f"--config.tasks.depth.data={SCENES}",
        "--config.tasks.depth.num_steps=6",
        "--config.tasks.depth.batch_size=8",
        "--config.run.eval_every_steps=4",
        "--config.model.depth=1",
    )
    code, _, err = run_here("train", "--config=dino_digits:steps=4", *settings, f"--workdir={tmp_path}/run")
    assert code == 0, err
    code, _, err = run_here("evaluate", f"--checkpoint={tmp_path}/run", "--task=depth", "--params=teacher")
    assert code == 0, err
    (file,) = (tmp_path / "run" / "evaluation").glob("depth-*.json")
    found = _evaluations(tmp_path / "run")[4]
    assert found["depth/rmse"] == pytest.approx(json.loads(file.read_text())["rmse"], abs=1e-6)
