"""evaluate --task: the flags, the data of a task, and the files of its result."""

import csv
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.config import Config, Data, LinearSettings, SegmentationSettings, Tasks, override, to_dict
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.data.selection import is_image_folder, name_and_split, select
from vit_registers.errors import ConfigError
from vit_registers.evaluation import suites, tasks
from vit_registers.evaluation.catalog import make_evaluators
from vit_registers.evaluation.task import Splits, TaskResult, TaskTable
from vit_registers.frozen_evaluation import Given, open_task, task_splits
from vit_registers.loading import open_run
from vit_registers.models.params import init_params
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runtime.mesh import make_mesh
from vit_registers.task_output import print_task_table, print_values, write_task
from vit_registers.training.state import TrainState

CONFIG = make_config(model={"depth": 2})
pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an untrained model of two blocks at step 0."""
    folder = tmp_path_factory.mktemp("runs") / "untrained"
    params = jax.jit(lambda: init_params(CONFIG.model, key=jax.random.key(1)))()
    state = TrainState(step=np.zeros((), np.int32), params={"vit": params}, opt_state=None, ema=None)
    data = TrainedOn(class_names=tuple("0123456789"), num_examples=1438)
    with Checkpoints(str(folder), CONFIG, data=data) as written:
        written.save(state, {"top1": 0.1})
    return folder


def _splits(task, data=None, train_data=None, *, is_run=True, tasks=CONFIG.tasks):
    return task_splits(Given("runs/one", task, data, train_data), CONFIG.data, tasks, is_run=is_run)


def test_the_data_of_a_task():
    assert _splits("knn") == Splits(("digits", "train"), ("digits", "test"))
    assert _splits("knn", "digits:train") == Splits(("digits", "train"), ("digits", "train"))
    assert _splits("linear", "cifar10:test") == Splits(("cifar10", "train"), ("cifar10", "test"))
    assert _splits("linear", None, "mnist:train[:10]").train == ("mnist", "train[:10]")
    dense = _splits("depth", "digit_scenes:test")
    assert dense == Splits(("digit_scenes", "train"), ("digit_scenes", "test"))
    own = SegmentationSettings(data="digit_scenes:test", train_data="data/ade:training")
    settings = Tasks(segmentation=own)
    assert _splits("segmentation", tasks=settings) == Splits(
        ("data/ade", "training"), ("digit_scenes", "test")
    )
    trained = _splits("segmentation", train_data="digit_scenes:train", tasks=settings)
    assert trained == Splits(("digit_scenes", "train"), ("digit_scenes", "test"))
    given = _splits("segmentation", "voc:val", tasks=settings, is_run=False)
    assert given == Splits(("voc", "train"), ("voc", "val"))
    with pytest.raises(ConfigError, match="--data=digit_scenes:test is always there"):
        _splits("depth", tasks=settings)
    for data in ("digits", ":test", "digits:"):
        with pytest.raises(ConfigError, match="must be NAME:SPLIT or FOLDER:SPLIT"):
            _splits("knn", data)
    with pytest.raises(ConfigError, match="digit_scenes"):
        _splits("segmentation")
    with pytest.raises(ConfigError, match="--data=FOLDER:SPLIT"):
        _splits("knn", is_run=False)


def test_names_and_folders(tmp_path):
    assert name_and_split("mnist:3.0.1:train[5:10]") == ("mnist:3.0.1", "train[5:10]")
    (tmp_path / "test" / "a").mkdir(parents=True)
    data = Data(name="imagenet2012", data_dir="/tfds", image_key="picture")
    folder = select(data, str(tmp_path), "test")
    assert (folder.name, folder.data_dir, folder.image_key) == ("folder", str(tmp_path), None)
    assert select(data, "cifar10", "test").data_dir == "/tfds"
    assert select(folder, "cifar10", "test").data_dir is None
    assert select(data, data.name, "train") == dataclasses.replace(data, eval_split="train")
    (tmp_path / "test" / "dataset_info.json").touch()
    assert not is_image_folder(str(tmp_path))


def test_a_run_without_a_flag_for_data(run, run_here):
    code, out, err = run_here("evaluate", f"--checkpoint={run}", "--task=knn")
    assert code == 0, err
    (file,) = (run / "evaluation").glob("knn-digits-test-0-*.json")
    found = json.loads(file.read_text())
    assert found["data"] == "digits:test" and found["top1_k20"] > 0.2 and found["images"] == 359
    assert found["files"] == [f"{file.stem}-neighbors.csv"] and "mean patch" in out
    assert not (run / "evaluation" / "unfinished").exists()


def test_names_of_results_differ_by_what_they_depend_on(run):
    def stem(data="digits:test", train_data=None, step=0, params=None, **overrides):
        given = Given(str(run), "knn", data, train_data, params)
        return open_task(given, open_run(str(run), step, overrides), overrides).stem

    stems = [
        stem(),
        stem("digits:train"),
        stem(train_data="digits:test"),
        stem(params="params"),
        stem(**{"tasks.knn.few_shot": 2}),
        stem(**{"tasks.seed": 1}),
        stem(**{"data.mean": (0.4,)}),
    ]
    assert len(set(stems)) == len(stems) - 1 and stems[3] == stems[0]
    same = stem(**{"tasks.linear.batch_size": 2, "data.eval_batch_size": 8})
    assert same == stem(None) == stems[0] and same.startswith("knn-digits-test-0-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task=segmentation",), "--data=digit_scenes:test is always there"),
        (("--task=knn", "--data=digits:tset"), "digits has no split 'tset'"),
        (("--task=knn", "--train_data=digits:half"), "training images: digits has no split 'half'"),
        (("--data=digits:test",), "--data is for --task=knn|linear|logistic|segmentation|depth"),
        (("--task=kmeans",), "kmeans"),
        (("--task=knn", "--config.tasks.knn.neighbors=0,"), "tasks.knn.neighbors=(0,): must be >= 1"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run, run_here, arguments, message):
    code, _, err = run_here("evaluate", f"--checkpoint={run}", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err


def test_files_of_a_result(tmp_path, capsys):
    table = TaskTable(("a", "b"), [("x, y", 0.5), (None, float("nan"))] + [("z", 1e-5)] * 70)
    picture = np.full((4, 6, 3), 7, np.uint8)
    result = TaskResult({"miou": 0.25}, {"classes": table}, {"samples": picture}, ("one note",))
    (tmp_path / "seg-x-1.png").write_text("of an older version")
    paths = write_task(tmp_path, "seg-x", {"task": "seg", **result.values}, result)
    assert {path.name for path in paths} == {"seg-x.json", "seg-x-classes.csv", "seg-x-samples.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    rows = [*csv.reader((tmp_path / "seg-x-classes.csv").read_text().splitlines())]
    assert rows[:3] == [["a", "b"], ["x, y", "0.5"], ["", ""]] and len(rows) == 73
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "seg-x-samples.png")), picture)
    found = json.loads((tmp_path / "seg-x.json").read_text())
    assert found["notes"] == ["one note"] and found["tables"]["classes"]["rows"][1] == [None, None]
    print_task_table("classes", table)
    assert "12 more rows" in capsys.readouterr().out
    print_values({"rmse": 0.5, "test_images": 9, "non_finite": 2})
    assert "2 of 9 images are not finite" in capsys.readouterr().out


def test_every_task_has_its_module():
    folder = Path(tasks.__file__).parent
    for name, entry in tasks.TASKS.items():
        assert hasattr(Config().tasks, name)
        path = folder / f"{entry.module.replace('.', '/')}.py"
        if path.exists():
            assert callable(tasks.import_task(name))


def test_an_untrained_model_of_a_run(run):
    """--params=initial: the parameters of the seed, whatever the checkpoint holds."""
    checkpoint, mesh = open_run(str(run)), make_mesh(CONFIG.mesh)
    found = checkpoint.read_params(mesh, "initial")["vit"]
    objective = make_objective(CONFIG)
    params, _ = jax.jit(objective.init)(jax.random.key(CONFIG.run.seed))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, params["vit"])
    trained = checkpoint.read_params(mesh)["vit"]
    assert not np.array_equal(found["patch_embed"]["kernel"], trained["patch_embed"]["kernel"])


@pytest.mark.slow
def test_tasks_of_a_run_are_evaluated_and_do_not_rank_its_checkpoints():
    config = make_config(model={"depth": 2})
    linear = LinearSettings(num_steps=4, batch_size=64, learning_rates=(0.1,))
    tasks_of_run = Tasks(while_training=("knn", "linear"), linear=linear)
    mesh, split = make_mesh(config.mesh), EvalSplit(open_data(config), "test")
    with jax.set_mesh(mesh):
        made = make_evaluators(
            config.objective, config.model, config.data, {"test": split}, mesh, tasks_of_run
        )
        assert [*made] == ["test", "knn", "linear"]
        params = {"vit": jax.jit(lambda: init_params(config.model, key=jax.random.key(0)))()}
        found = {name: made[name](params) for name in ("knn", "linear")}
    assert found["knn"]["top1_k20"] > 0.2 and found["knn"]["images"] == 359
    assert {"top1", "top5", "loss", "held_out_top1"} < found["linear"].keys()
    with pytest.raises(ConfigError, match="must be of knn, linear, logistic, segmentation, depth"):
        override(to_dict(config), {"tasks.while_training": ("kmeans",)})


@pytest.mark.slow
def test_a_suite_leaves_out_what_is_not_there(run, run_here, monkeypatch):
    members = (
        suites.Member("digits"),
        suites.Member("no_such_set"),
        suites.Member("voc", obstacle="a reason"),
    )
    monkeypatch.setitem(suites.SUITES, "small_vits", members)
    args = ("evaluate", f"--checkpoint={run}", "--task=knn", "--suite=small_vits")
    code, out, err = run_here(*args)
    assert code == 0, err
    assert "no_such_set: left out: " in out and "voc: left out: a reason" in out
    (file,) = (run / "evaluation").glob("suite-small_vits-knn-0-*.json")
    found = json.loads(file.read_text())
    assert found["measured"] == 1 and len(found["tables"]["suite"]["rows"]) == 3
    assert found["digits/top1_k10"] == found["tables"]["suite"]["rows"][0][1]
    code, _, err = run_here(*args, "--data=digits:test")
    assert code == 2 and err.count("\n") == 1 and "leave --data and --train_data out" in err


def test_the_suites_of_the_papers():
    assert [len(suites.SUITES[name]) for name in ("registers", "small_vits")] == [14, 4]
