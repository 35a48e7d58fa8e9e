"""evaluate and analyze in two processes of two devices, over loopback, against one process of four devices.

This file is also the program that these processes run: see `_work`.
"""

import csv
import functools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from tests.fixtures.processes import joined, run_processes
from tests.objectives.image_text.test_training import CONFIG as TEXTS
from tools.ports import free_port
from vit_registers import task_command
from vit_registers.analysis import given_images, opening
from vit_registers.analysis.features import compute
from vit_registers.analysis.options import Options
from vit_registers.analysis.run import analyze
from vit_registers.data.tokenizers.byte_values import Bytes
from vit_registers.errors import DataError
from vit_registers.evaluation.segmentation import task as segmentation_task
from vit_registers.frozen_evaluation import Given
from vit_registers.loading import open_run
from vit_registers.objectives.catalog import make_objective
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.tokenizer_file import write_tokenizer
from vit_registers.runtime import distributed
from vit_registers.runtime.exchange import from_first, gather
from vit_registers.runtime.mesh import ordered_mesh
from vit_registers.storage import paths

ROOT = Path(__file__).parents[1]
LOST_S = 10.0
CONFIG = make_config(model={"depth": 2, "num_registers": 2}, run={"seed": 1})
TASKS = ("knn", "linear", "logistic", "segmentation", "depth")
TASKS_WITH_TEXTS = ("zero_shot", "retrieval", "zero_shot_segmentation")
# Each reads features of another kind; remove-outliers runs edited models, frozen-heads trains heads.
NAMES = ["norms", "accuracy", "attention-shares", "probe-global", "remove-outliers", "frozen-heads"]
SETTINGS = {
    "tasks.linear.num_steps": 30,
    "tasks.logistic.num_c": 4,
    "tasks.segmentation.num_steps": 30,
    "tasks.depth.num_steps": 20,
}
pytestmark = pytest.mark.slow


# --- the program -------------------------------------------------------------------------------


def _measure(folder):
    """All tasks and some experiments in one start of the processes, which takes most of the time."""
    run = f"{folder}/run"
    for task in TASKS:
        data = "digit_scenes:test" if task in ("segmentation", "depth") else None
        given = Given(run, task, data)
        task_command.run_command(given, open_run(run, 0, SETTINGS), SETTINGS, _results("tasks"))
    _analyze(folder, NAMES)
    run = f"{folder}/clip"
    for task in TASKS_WITH_TEXTS:
        for _ in range(2):  # again with the vectors of classes that were kept
            data = "digit_scenes:test" if task == "zero_shot_segmentation" else None
            task_command.run_command(Given(run, task, data), open_run(run, 0), {}, _results("tasks"))


def _analyze(folder, names):
    overrides = {**SETTINGS, "data.eval_batch_size": 64, "data.loader": "pil"}
    opened = opening.open_all([f"{folder}/run"], f"{folder}/photos", overrides, num_images=150)
    dense = ["digit_scenes:train", "digit_scenes:test"]
    options = given_images.with_tasks(Options(num_edited=20), ["depth"], dense, opened[0])
    entries = analyze(names, opened, options, Path(_results("analysis")))
    assert (len(entries) == len(names)) == (jax.process_index() == 0)


def _results(name):
    """A folder of this process. Only that of process 0 is made."""
    folder = paths.folder(f"{os.environ['RESULTS']}/{jax.process_count()}-{jax.process_index()}/{name}")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _kill(folder):
    """Process 1 dies while features are computed."""
    on_host = compute._on_host

    def die(*args):
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return on_host(*args)

    compute._on_host = die
    _analyze(folder, ["norms"])


def _fail(folder):
    """Process 1 cannot read one of its test images; both know the reason."""
    count = segmentation_task.count_split

    def count_split(*args, **settings):
        if jax.process_index() == 1:
            raise DataError("image 7 is broken: repair it")
        return count(*args, **settings)

    segmentation_task.count_split = count_split
    given = Given(f"{folder}/run", "segmentation", "digit_scenes:test")
    checkpoint = open_run(f"{folder}/run", 0, SETTINGS)
    task_command.run_command(given, checkpoint, SETTINGS, _results("failed"))


def _exchange(folder):
    """Values and errors reach all processes, in order, also after a long wait."""
    mesh, me = ordered_mesh(), jax.process_index()
    for turn in range(3):
        if me == turn % 2:
            time.sleep(1.5)
        assert gather(lambda turn=turn: (me, turn, np.ones(me)), mesh)[1][:2] == (1, turn)
        assert from_first(lambda: me, mesh) == 0
    for failing in (0, 1):
        with pytest.raises(DataError, match=f"of {failing}"):
            gather(functools.partial(_raise_on, failing), mesh)
    assert gather(lambda: me, mesh) == [0, 1]


def _raise_on(failing):
    if jax.process_index() == failing:
        raise DataError(f"error of {failing}")


def _work(port, count, me, folder, what):
    alone = distributed.together(LOST_S)
    with joined(port, count, me, LOST_S) if int(count) > 1 else alone:
        globals()[what](folder)


# --- starting it -------------------------------------------------------------------------------


@pytest.fixture
def job(quick, folder, tmp_path):
    """job("_measure", 2) -> [(exit code, standard output, standard error), ...]; four devices in all."""

    def job(what, count=2):
        environment = quick(4 // count) | {"RESULTS": str(tmp_path)}
        shared = [str(free_port()), str(count)]
        commands = [[sys.executable, __file__, *shared, str(me), str(folder), what] for me in range(count)]
        return run_processes(commands, environment, tmp_path)

    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an untrained run at step 0, and photos with ten classes."""
    from vit_registers.models.params import init_params
    from vit_registers.runs.checkpoints import Checkpoints
    from vit_registers.training.state import TrainState

    folder = tmp_path_factory.mktemp("processes")
    params = jax.jit(lambda: init_params(CONFIG.model, key=jax.random.key(1)))()
    state = TrainState(step=np.zeros((), np.int32), params={"vit": params}, opt_state=None, ema=None)
    data = TrainedOn(class_names=tuple("0123456789"), num_examples=1438)
    with Checkpoints(str(folder / "run"), CONFIG, data=data) as written:
        written.save(state, {"top1": 0.1})
    objective = make_objective(TEXTS)
    params, extra = jax.jit(objective.init)(jax.random.key(2))
    state = TrainState(step=np.zeros((), np.int32), params=params, opt_state=None, ema=None, extra=extra)
    with Checkpoints(str(folder / "clip"), TEXTS, data=data) as written:
        written.save(state, {objective.best.metric: 0.1})
    write_tokenizer(Bytes(), paths.folder(str(folder / "clip")), is_resumed=False)
    rng = np.random.default_rng(0)
    for i in range(150):
        place = folder / "photos" / "0123456789"[i % 10] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place)
    return folder


def _errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def _own_lines(text):
    """What a process prints, without the lines of Gloo, XLA's transport between processes on CPUs."""
    return [line for line in text.splitlines() if "[Gloo]" not in line and "peer ranks" not in line]


def _files(folder):
    """The files of results, without the features of edited models, whose folders are named by digests."""
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    is_own = re.compile(r"(?!analysis/features/)|analysis/features/run-[0-9a-f]{12}/").match
    return {name: path for name, path in names.items() if is_own(name)}


def _assert_near(one, two, tolerance, where):
    """Equal but for times, and numbers that devices reduce in another order."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one.keys() - {"time_s"}:
            _assert_near(one[key], two[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), where
        for i, pair in enumerate(zip(one, two, strict=True)):
            _assert_near(*pair, tolerance, f"{where}/{i}")
    elif isinstance(one, float) and isinstance(two, float):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance, err_msg=where)
    else:
        assert one == two, where


def _read(path):
    """The numbers of a file of results; None of a picture or a page."""
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".csv":
        return [[_number(cell) for cell in row] for row in csv.reader(path.read_text().splitlines())]
    return np.load(path).astype(np.float64).ravel().tolist() if path.suffix == ".npy" else None


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


# --- tests -------------------------------------------------------------------------------------


def test_two_processes_have_the_results_of_one_and_one_of_them_writes(job, tmp_path):
    (code, _, err), *_ = job("_measure", 1)
    assert code == 0, err
    two = job("_measure", 2)
    assert [code for code, _, _ in two] == [0, 0], two
    assert _own_lines(two[1][1]) == []  # only process 0 speaks
    assert not (tmp_path / "2-1").exists()
    ours, theirs = _files(tmp_path / "1-0"), _files(tmp_path / "2-0")
    assert {*ours} == {*theirs}
    assert sum(name.startswith("tasks/") and name.endswith(".json") for name in ours) == len(
        TASKS + TASKS_WITH_TEXTS
    )
    for name in NAMES:
        assert f"analysis/{name}/numbers.json" in ours, name
    for name in ours:
        # Heads of depth and edited models: what rounding changes grows over steps and layers.
        tolerance = 1e-4 if re.search("depth|frozen-heads|remove-outliers", name) else 1e-6
        _assert_near(*(_read(files[name]) for files in (ours, theirs)), tolerance, name)
    for name in ours:  # no number of these is reduced over devices
        if re.match(r"tasks/(knn|logistic).*csv|analysis/norms/.*csv|.*npy", name):
            assert ours[name].read_bytes() == theirs[name].read_bytes(), name


def test_a_killed_process_ends_the_other_with_one_line(job, tmp_path):
    (code, _, err), (killed, _, _) = job("_kill")
    assert killed == -signal.SIGKILL
    assert (code, len(_errors(err))) == (distributed.LOST, 1), err
    assert "no sign of life from process 1 for 10 s" in err


def test_an_image_that_one_process_cannot_read_ends_both_with_the_reason(job):
    for code, _, err in job("_fail"):
        assert (code, len(_errors(err))) == (2, 1), err
        assert "image 7 is broken: repair it" in _errors(err)[0]


def test_values_and_errors_reach_all_processes(job):
    results = job("_exchange")
    assert [code for code, _, _ in results] == [0, 0], results


@pytest.fixture
def programs(start):
    """programs("evaluate", "--flag=...", others=()) -> [(exit code, output, errors), ...] of two processes.

    The second one has `others` in addition.
    """

    def programs(program, *args, others=()):
        address = f"--coordinator=127.0.0.1:{free_port()}"
        started = [
            start(program, *args, *more, address, "--num_processes=2", f"--process_id={me}", devices=2)
            for me, more in enumerate(((), others))
        ]
        return [(one.wait(300), *one.communicate()) for one in started]

    return programs


def test_the_commands_join_and_refuse(programs, folder, tmp_path):
    checkpoint, out = f"--checkpoint={folder}/run", f"--out={tmp_path}/out"
    (code, said, err), (other, silent, quiet) = programs("analyze", "norms", checkpoint, out)
    assert (code, other, quiet, _own_lines(silent)) == (0, 0, "", []), (err, quiet)
    assert "finding: " in said and (tmp_path / "out" / "norms" / "numbers.json").exists()
    (code, said, err), (other, silent, quiet) = programs("evaluate", checkpoint, out)
    assert (code, other, quiet, _own_lines(silent)) == (0, 0, "", []), (err, quiet)
    assert "images      359" in said
    for command, others, message in (
        (("analyze", "norms", checkpoint), ("--num_images=5",), "--num_images (5 on process 1, None on "),
        (("evaluate", checkpoint, "--task=knn", "--suite=small_vits"), (), "--suite=small_vits runs in one "),
    ):
        results = programs(*command, out, others=others)
        assert [code for code, _, _ in results] == [2, 2], results
        for _, _, err in results:
            assert len(_errors(err)) == 1 and message in err and "Traceback" not in err, err


if __name__ == "__main__":
    _work(*sys.argv[1:])
