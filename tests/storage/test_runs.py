"""Runs in gs:// end as runs on a local disk do, bit for bit, whatever is stopped on the way."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import vit_registers
from tests.fixtures.digits import flags
from tests.fixtures.faulty_store import FaultyStore
from vit_registers.runs.checkpoint_folder import list_steps, newest_intact_step
from vit_registers.storage import files, objects

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS = 60
KILLS = int(os.environ.get("KILLS", "2"))  # of two processes; 10 take many minutes
ARGS = flags(
    f"registers=2,steps={STEPS}",
    checkpoint={"every_steps": 6, "keep_last": 2},
    run={"eval_every_steps": 20, "log_every_steps": 3, "stop_every_steps": 1},
    data={"eval_batch_size": 360},
)


def _metrics(run):
    lines = [json.loads(line) for line in files.read_file(epath.Path(run) / "metrics.jsonl").splitlines()]
    return [line for line in lines if "images_per_s" not in line]


def _leaves(run):
    path = epath.Path(run) / "checkpoints" / str(list_steps(str(run))[0]) / "state"
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    restored = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return jax.tree_util.tree_leaves_with_path(restored)


def _assert_same_end(run, reference):
    assert _metrics(run) == _metrics(reference)
    for (name, a), (_, b) in zip(_leaves(run), _leaves(reference), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=str(name))


def _wait(condition, program=None, timeout_s=180):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert program is None or program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return tmp_path_factory.mktemp("local") / "run"


@pytest.fixture
def whole(run, local):
    """A run on the local disk that was never stopped."""
    if not local.exists():
        code, _, err = run("train", *ARGS, f"--workdir={local}")
        assert code == 0, err
    return local


@pytest.fixture
def finished(run, gs_folder):
    code, _, err = run("train", *ARGS, f"--workdir={gs_folder}")
    assert code == 0, err
    return gs_folder


def test_a_stopped_run_resumes_and_ends_as_on_a_local_disk(start, run, whole, gs_folder):
    program = start("train", *ARGS, f"--workdir={gs_folder}")
    _wait(lambda: list_steps(gs_folder), program)
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0 and "saved at step" in out, err
    code, out, err = run("train", *ARGS, f"--workdir={gs_folder}")
    assert code == 0 and "resumes at step" in out, err
    _assert_same_end(gs_folder, whole)
    assert len(list_steps(gs_folder)) == len(list_steps(str(whole)))
    ours, theirs = (files.read_json_object(epath.Path(one) / "result.json") for one in (gs_folder, whole))
    assert ours["metrics"] == theirs["metrics"] and ours["best"] == theirs["best"]
    assert files.names(gs_folder) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "parameters.txt",
        "result.json",
    ]  # no lock is left


def test_what_reads_a_run_reads_one_in_gs(run, finished, whole, tmp_path):
    here, there = (vit_registers.load(str(one)) for one in (whole, finished))
    assert here.layout == there.layout
    outputs = []
    for one in (whole, finished):
        code, out, err = run("evaluate", f"--checkpoint={one}")
        assert code == 0, err
        outputs.append([line for line in out.splitlines() if line.startswith(("loss", "top1", "top5"))])
    assert outputs[0] == outputs[1] and files.exists(f"{finished}/evaluation/test-{STEPS}.json")
    for target, output in (("run", f"{finished}-converted"), ("timm", f"{tmp_path}/weights.safetensors")):
        code, out, err = run("convert", f"--input={finished}@{STEPS}", f"--output={output}", f"--to={target}")
        assert code == 0 and "equal bit for bit" in out, err
    start = f"--config.init_from.path={finished}-converted"
    code, out, err = run("train", *ARGS, start, f"--workdir={finished}-tuned", "--config.run.total_steps=4")
    assert code == 0 and "starts from gs://" in out, err
    code, _, err = run("analyze", "norms", f"--checkpoint={finished}", f"--out={tmp_path}/report")
    assert code == 0, err
    code, _, err = run("analyze", "norms", f"--checkpoint={finished}", f"--out={finished}/report")
    assert code == 2 and "--out=gs://" in err and err.count("\n") == 1, err


def test_damage_is_marked_and_the_step_is_written_again(run, finished, whole):
    root = epath.Path(finished) / "checkpoints"
    newest, before = list_steps(finished)[:2]
    path = next(path for path in objects.find_all(root / str(newest)) if path.startswith("state/d/"))
    data = bytearray(objects.read_object(root / str(newest) / path))
    data[-1] ^= 1
    objects.write_object(root / str(newest) / path, bytes(data))
    objects.write_object(root / "48" / "state" / "_METADATA", b"{}")  # of a save that was killed
    assert newest_intact_step(finished) == before
    code, out, err = run("train", *ARGS, f"--workdir={finished}")
    assert code == 0, err
    assert f"{newest} is damaged" in out and f"resumes at step {before}" in out
    assert not files.is_folder(root / "48") and not files.exists(root / str(newest) / "damaged")
    _assert_same_end(finished, whole)


def _is_saving(run):
    return any(int(name) not in list_steps(run) for name in files.names(epath.Path(run) / "checkpoints"))


def _start_pair(environment, folder, logs):
    """Two processes of one run that is long enough for all kills."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vit_registers.train", *ARGS, f"--workdir={folder}"]
    command += [
        f"--config.run.total_steps={max(STEPS, 30 * KILLS)}",
        f"--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
    ]
    outputs = [(Path(logs) / f"{i}.log").open("ab") for i in range(2)]
    pair = [
        subprocess.Popen([*command, f"--process_id={i}"], env=environment, stdout=out, stderr=out)
        for i, out in enumerate(outputs)
    ]
    for out in outputs:
        out.close()
    return pair


def test_two_processes_killed_at_random_moments_end_as_if_they_were_not(quick, gs_folder, tmp_path):
    moments, environment = random.Random(5), quick()
    reference, killed = f"{gs_folder}/whole", f"{gs_folder}/killed"
    for program in _start_pair(environment, reference, tmp_path):
        assert program.wait(300) == 0, (tmp_path / "0.log").read_text()
    for kill in range(KILLS):
        pair, begun = _start_pair(environment, killed, tmp_path), list_steps(killed)
        try:
            _wait(lambda begun=begun: list_steps(killed)[:1] > begun[:1], pair[0])
            if kill % 2:  # in a commit: a folder of a step without its commit file
                _wait(lambda: _is_saving(killed), pair[0])
            time.sleep(moments.uniform(0, 0.3))
        finally:
            for program in moments.sample(pair, 2):
                program.kill()
                program.wait()
    assert not files.exists(epath.Path(killed) / "result.json")
    for program in _start_pair(environment, killed, tmp_path):
        assert program.wait(300) == 0, (tmp_path / "0.log").read_text()
    _assert_same_end(killed, reference)


@pytest.mark.parametrize("where", ["save", "metrics"])
def test_a_store_that_is_away_for_a_while_costs_nothing(start, emulator, gs_folder, whole, where):
    program = start("train", *ARGS, f"--workdir={gs_folder}")
    try:
        # The next step writes metrics.jsonl before it saves.
        _wait(lambda: _is_saving(gs_folder) if where == "save" else list_steps(gs_folder), program)
        emulator.stop()
        time.sleep(30)
    finally:
        emulator.start()
    out, err = program.communicate(timeout=240)
    assert program.returncode == 0, out + err
    _assert_same_end(gs_folder, whole)


def test_a_sweep_by_two_workers_runs_nothing_twice(start, run, gs_folder, tmp_path):
    from tests.fixtures.sweeps import CONFIG

    (tmp_path / "two.py").write_text(CONFIG)
    args = (f"--config={tmp_path}/two.py:cells=1,steps=16", f"--workdir={gs_folder}")
    workers = [start("sweep", *args) for _ in range(2)]
    outputs = [worker.communicate(timeout=280) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    names = files.names(gs_folder)
    assert len(names) == 2
    for name in names:
        log = files.read_file(epath.Path(gs_folder) / name / "log.txt").decode()
        assert log.count("$ ") == 1 and log.count("16 steps in") == 1
    code, out, err = run("tabulate", *args)
    assert code == 0 and "2 of 2 runs finished" in out, err


@pytest.mark.parametrize(
    "code, said",
    [
        (401, "the credentials are missing or expired: gcloud auth application-default login"),
        (403, "permission denied: grant roles/storage.objectUser on the bucket"),
        (404, "there is no bucket gs://"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(quick, emulator, gs_folder, code, said):
    with FaultyStore(emulator.address) as store:
        store.code = code
        command = [sys.executable, "-m", "vit_registers.train", *ARGS, f"--workdir={gs_folder}"]
        done = subprocess.run(
            command, env=quick() | store.environment, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and said in done.stderr, done.stderr


def test_a_busy_store_is_asked_again(quick, emulator, gs_folder, whole):
    with FaultyStore(emulator.address) as store:
        command = [sys.executable, "-m", "vit_registers.train", *ARGS, f"--workdir={gs_folder}"]
        pipe = subprocess.PIPE
        program = subprocess.Popen(
            command, env=quick() | store.environment, stdout=pipe, stderr=pipe, text=True
        )
        _wait(lambda: list_steps(gs_folder), program)
        store.code = 503
        _wait(lambda: store.refused > 3, program)
        time.sleep(5)
        store.code = None
        out, err = program.communicate(timeout=240)
        assert program.returncode == 0, out + err
    _assert_same_end(gs_folder, whole)
