"""Several real processes, over loopback: they train as one process does, stop together, and end if one fails.

This file is also the program that those processes run: see `_work`.
"""

import dataclasses
import functools
import json
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.fixtures.digits import make_config
from tests.fixtures.processes import joined, run_processes
from tools.ports import free_port
from vit_registers import train as train_lib
from vit_registers.config import Mesh
from vit_registers.errors import ConfigError
from vit_registers.runs import prepared
from vit_registers.runs.checkpoint_folder import list_steps, newest_intact_step
from vit_registers.runtime import distributed, rendezvous, stopping
from vit_registers.runtime.mesh import make_mesh

ROOT = Path(__file__).parents[2]
TOTAL = 16
LOST_S = 10.0
# A large epsilon: the gradient of the key bias is zero but for rounding, which Adam would blow up.
CONFIG = make_config(
    model={"num_registers": 2},
    data={"eval_batch_size": 64, "train_ops": "random_crop(padding=1)"},
    optimizer={"eps": 1e-3},
    run={"total_steps": TOTAL, "eval_every_steps": 8, "log_every_steps": 2, "stop_every_steps": 2},
)
by_hand = pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="long: set LONG_TESTS=1")


# --- the program -------------------------------------------------------------------------------


def _at_step(step, act):
    """Calls `act` once in this process, when the loop is at `step`."""
    ask = stopping.Agreement.is_reached
    done = []

    def is_reached(self, at, request):
        if at == step and not done:
            done.append(at)
            act()
        return ask(self, at, request)

    stopping.Agreement.is_reached = is_reached


def _signal_myself(number):
    os.kill(os.getpid(), number)


def _train(folder):
    """Several runs in one start of the processes, because starting them takes most of the time."""
    from jax.experimental import multihost_utils

    is_last = jax.process_index() == jax.process_count() - 1
    train_lib.train(CONFIG, f"{folder}/whole")
    if is_last:
        _at_step(5, functools.partial(_signal_myself, signal.SIGTERM))
    train_lib.train(CONFIG, f"{folder}/stopped")
    if jax.process_index() == 0:
        shutil.copytree(f"{folder}/stopped", f"{folder}/moved")
    multihost_utils.sync_global_devices("copied")
    train_lib.train(CONFIG, f"{folder}/stopped")
    print("killing", flush=True)
    if is_last:
        # The save of step 4 is complete when the save of step 8 begins, which may not complete.
        _at_step(9, functools.partial(_signal_myself, signal.SIGKILL))
    train_lib.train(CONFIG, f"{folder}/killed")


def _go_on(folder):
    train_lib.train(CONFIG, f"{folder}/killed")


def _fill_up(folder):
    """The last process cannot write its part of two saves in a first run, process 0 in a second run."""
    mine, limits = jax.process_index(), resource.getrlimit(resource.RLIMIT_FSIZE)
    model = dataclasses.replace(CONFIG.model, width=64)
    config = dataclasses.replace(CONFIG, model=model, mesh=Mesh(data=1, fsdp=jax.process_count()))
    for name, one in (("last", jax.process_count() - 1), ("first", 0)):
        if mine == one:
            _at_step(3, functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, limits[1])))
            _at_step(11, functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits))
        train_lib.train(config, f"{folder}/{name}")


def _refuse(folder):
    if distributed.jax_distributed.global_state.process_id == 1:
        raise ConfigError("disk 7 is unplugged:\nplug it in")
    time.sleep(60)


def _vanish(folder):
    """Process 0 ends, and with it the coordinator that the others wait for."""
    time.sleep(1)
    if distributed.jax_distributed.global_state.process_id == 0:
        _signal_myself(signal.SIGKILL)
    time.sleep(60)


def _fail_last(folder):
    """One process has completed its work when the other one fails."""
    failing = int(os.environ["FAILING"])
    if distributed.jax_distributed.global_state.process_id == failing:
        time.sleep(1.5)
        raise ConfigError("the last file cannot be written")


def _fail_slowly(folder):
    """Process 1 fails on a machine so busy that it runs on for two seconds after the others know it."""
    tell = distributed._tell

    def tell_slowly(client, notice):
        tell(client, notice)
        time.sleep(2)

    distributed._tell = tell_slowly
    if distributed.jax_distributed.global_state.process_id == 1:
        raise ConfigError("the file cannot be read")
    time.sleep(60)


def _disagree(folder):
    """The processes agree once, and then one has other data."""
    rendezvous.require_same({"classes": 2})
    rendezvous.require_same({"classes": 2 + distributed.jax_distributed.global_state.process_id})


def _finish(folder):
    print("done", flush=True)


def _work(port, count, me, folder, what):
    with joined(port, count, me, LOST_S):
        globals()[what](folder)


# --- starting it -------------------------------------------------------------------------------


@pytest.fixture
def job(compilation_cache, tmp_path):
    """job("_train", 2) -> [(exit code, standard output, standard error), ...] of 2 processes."""

    def job(what, count=2, timeout_s=600):
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        shared = [str(free_port()), str(count)]
        commands = [[sys.executable, __file__, *shared, str(me), str(tmp_path), what] for me in range(count)]
        return run_processes(commands, environment, tmp_path, timeout_s)

    return job


def _errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def _metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "images_per_s" not in line]


def _leaves(run, step=TOTAL):
    path = run / "checkpoints" / str(step) / "state"
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    shapes = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    return jax.tree_util.tree_leaves_with_path(
        reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    )


def _assert_same_end(run, other, atol):
    for (name, a), (_, b) in zip(_leaves(run), _leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=str(name))
    for a, b in zip(_metrics(run), _metrics(other), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5, atol=atol)


@pytest.fixture
def train_here(monkeypatch, compiled_once):
    """train_here(run, num_devices, stop_at=None): resumes a run in this one process."""

    def train_here(run, num_devices, stop_at=None):
        make_small = functools.partial(make_mesh, devices=jax.devices()[:num_devices])
        with monkeypatch.context() as patch:
            patch.setattr(prepared, "make_mesh", make_small)
            if stop_at is not None:
                patch.setattr(stopping.Agreement, "is_reached", lambda self, step, request: step >= stop_at)
            train_lib.train(CONFIG, str(run))

    return train_here


# --- training ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=by_hand)])
def test_several_processes_train_as_one_stop_together_and_do_not_outlive_one(
    job, train_here, tmp_path, count
):
    results = job("_train", count)
    survivors, (killed_code, _, _) = results[:-1], results[-1]
    assert killed_code == -signal.SIGKILL
    for me, (code, out, err) in enumerate(survivors):
        assert (code, len(_errors(err))) == (distributed.LOST, 1), err
        assert f"no sign of life from process {count - 1} for 10 s" in err
        assert f"this process ({me}) ends too" in err
        assert ("top1" in out) == ("parameters: " in out) == (me == 0)  # only process 0 speaks
    assert "stop requested on another process: saved at step 8 of 16" in results[0][1]
    # The same layout gives the same bits, although a signal to one process stopped all of them.
    assert list_steps(str(tmp_path / "moved"))[0] == 8
    _assert_same_end(tmp_path / "stopped", tmp_path / "whole", atol=0.0)
    # Other layouts resume with the same results: one process with one device, then four devices.
    train_here(tmp_path / "moved", 1, stop_at=11)
    assert list_steps(str(tmp_path / "moved"))[0] == 11
    train_here(tmp_path / "moved", 4)
    _assert_same_end(tmp_path / "moved", tmp_path / "whole", atol=2e-5)
    # Their evaluations are equal too and count each image once: 359 do not divide over the devices.
    ends = [_metrics(tmp_path / name)[-1] for name in ("moved", "whole")]
    assert [end["test/images"] for end in ends] == [359, 359]
    # Half of the processes resume what a killed job left; all of them do so with the same bits.
    assert list_steps(str(tmp_path / "killed"))[0] in (4, 8)
    shutil.copytree(tmp_path / "killed", tmp_path / "halved")
    train_here(tmp_path / "halved", count // 2)
    _assert_same_end(tmp_path / "halved", tmp_path / "whole", atol=2e-5)
    assert [code for code, _, _ in job("_go_on", count)] == [0] * count
    _assert_same_end(tmp_path / "killed", tmp_path / "whole", atol=0.0)


@pytest.mark.slow
def test_a_process_that_cannot_write_its_part_of_a_save_does_not_hold_up_the_others(job, tmp_path):
    results = job("_fill_up", timeout_s=200)  # Orbax's own barrier waits 20 minutes
    assert [code for code, _, _ in results] == [0, 0], results
    for run, failed in (("last", 1), ("first", 0)):
        for me, (_, out, _) in enumerate(results):
            who = "" if me == failed else f"process {failed} could not write its part: "
            for step in (4, 8):
                line = (
                    f"{run}/checkpoints/{step} could not be written: {who}File too large; the run continues"
                )
                assert (line in out) == (me in (0, failed)), out
        assert list_steps(str(tmp_path / run)) == [16, 12]
        assert newest_intact_step(str(tmp_path / run)) == 16


# --- ending together ---------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other_with_its_cause(job):
    started = time.monotonic()
    (code_0, _, err_0), (code_1, _, err_1) = job("_refuse")
    assert time.monotonic() - started < 50
    assert (code_0, code_1) == (2, 2)
    assert _errors(err_1) == ["error: disk 7 is unplugged: plug it in"]
    assert _errors(err_0) == [
        "error: process 1 of 2 failed: disk 7 is unplugged: plug it in; this process (0) ends too"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=by_hand)])
def test_a_process_that_is_done_hears_of_one_that_fails_after_it(job, monkeypatch, failing):
    monkeypatch.setenv("FAILING", str(failing))
    results = job("_fail_last")
    for me, (code, _, err) in enumerate(results):
        line = "error: the last file cannot be written"
        if me != failing:
            line = f"error: process {failing} of 2 failed: {line[7:]}; this process ({me}) ends too"
        assert (code, err.strip().splitlines()) == (2, [line])


@pytest.mark.slow
def test_a_process_that_fails_slowly_keeps_its_line_and_its_exit_code(job):
    (code_0, _, err_0), (code_1, _, err_1) = job("_fail_slowly")
    assert (code_1, err_1) == (2, "error: the file cannot be read\n")
    assert (code_0, _errors(err_0)) == (
        2,
        ["error: process 1 of 2 failed: the file cannot be read; this process (0) ends too"],
    )


@pytest.mark.slow
def test_processes_with_different_data_refuse_each_other(job):
    (code_0, _, err_0), (code_1, _, err_1) = job("_disagree")
    assert (code_0, code_1) == (2, 2)
    (line_0,), (line_1,) = _errors(err_0), _errors(err_1)
    assert "different settings or data: classes (3 on process 1, 2 on process 0)" in line_1
    assert line_0.startswith("error: process 1 of 2 failed: ") and line_1[7:] in line_0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ("--config.model.num_registers=3", "--config.run.seed=7"),
            "data: model.num_registers (3 on process 1, 0 on process 0); run.seed (7 on process 1, 0",
        ),
        (("--config.run.lost_timeout_s=-1",), "run.lost_timeout_s=-1.0: must be > 0"),
        (("--config.run.lost_timeot_s=1",), "config.run.lost_timeot_s is not a setting"),
    ],
)
def test_processes_with_different_settings_refuse_each_other(start, tmp_path, other, message):
    port = free_port()
    common = ("--config=configs/digits.py:steps=4", f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    first = start("train", *common, "--process_id=0", f"--workdir={tmp_path}", "--config.data.data_dir=here")
    second = start("train", *common, "--process_id=1", f"--workdir={tmp_path}", *other)
    errors = [process.communicate(timeout=100)[1].strip().splitlines() for process in (first, second)]
    assert [first.returncode, second.returncode] == [2, 2], errors
    assert [len(lines) for lines in errors] == [1, 1], errors
    assert errors[0][0].startswith("error: process 1 of 2 failed: ")
    assert message in errors[0][0] and message in errors[1][0]
    assert not list(tmp_path.glob("*"))


@pytest.mark.slow
def test_without_process_0_the_others_end_and_say_so(job):
    started = time.monotonic()
    (code_0, _, _), (code_1, _, err) = job("_vanish")
    assert time.monotonic() - started < 50
    assert code_0 == -signal.SIGKILL
    # JAX aborts the process at the same moment; whichever of the two is first, the line is the same.
    assert code_1 == distributed.LOST
    assert _errors(err) == ["error: process 0 is gone, so this process (1 of 2) ends"]


@pytest.mark.slow
def test_a_job_that_is_done_ends_at_once(job):
    assert [(code, out) for code, out, _ in job("_finish")] == [(0, "done\n")] * 2


# --- coming together ---------------------------------------------------------------------------


def _meet(*callers, port=None, timeout_s=1.0):
    """What each of (process_id, num_processes) gets: None, or its error."""
    port, results = port or free_port(), {}

    def call(place, process_id, count):
        try:
            rendezvous.meet(
                f"127.0.0.1:{port}", num_processes=count, process_id=process_id, timeout_s=timeout_s
            )
            results[place] = None
        except ConfigError as error:
            results[place] = str(error)

    threads = [threading.Thread(target=call, args=(i, *caller)) for i, caller in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[i] for i in range(len(callers))]


def test_processes_that_fit_together_meet():
    assert _meet((2, 3), (0, 3), (1, 3), timeout_s=20) == [None] * 3
    assert _meet((0, 1)) == [None]


@pytest.mark.parametrize("failing", [0, 2])
def test_a_process_that_cannot_start_tells_the_others(failing):
    """Those that called before it and those that call after it; it does not wait when all know."""
    port, started = free_port(), time.monotonic()
    words = {"num_processes": 4, "process_id": failing, "line": "no setting 'x y': did you mean 'z'?"}

    def refuse():
        time.sleep(0.5)
        rendezvous.refuse(f"127.0.0.1:{port}", **words)

    thread = threading.Thread(target=refuse)
    thread.start()
    callers = [(number, 4) for number in range(4) if number != failing]
    found = _meet(*callers, port=port, timeout_s=30)
    thread.join()
    assert found == [f"process {failing} of 4 failed: no setting 'x y': did you mean 'z'?"] * 3
    assert time.monotonic() - started < 20


def test_numbers_that_do_not_fit_are_told_to_all():
    for found in _meet((0, 2), (1, 3), timeout_s=20):
        assert found == "process 1 has --num_processes=3, process 0 has 2"
    for found in _meet((0, 3), (1, 3), (1, 3), timeout_s=20):
        assert found == "two processes have --process_id=1"


@pytest.mark.slow
def test_who_is_missing_is_named():
    for found in _meet((0, 4), (2, 4)):
        assert "of 4 processes, 1, 3 did not connect" in found
    (found,) = _meet((1, 2))
    assert "cannot be reached within 1 s" in found
    assert "Connection refused" in found


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        (found,) = _meet((0, 2), port=listener.getsockname()[1])
    assert "cannot be listened on: Address already in use" in found


def test_strangers_at_the_port_are_not_counted():
    port, found = free_port(), []
    thread = threading.Thread(target=lambda: found.extend(_meet((0, 2), port=port, timeout_s=20)))
    thread.start()
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    assert _meet((1, 2), port=port, timeout_s=20) == [None]
    thread.join()
    assert found == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "host"}, "requires --num_processes and --process_id"),
        ({"num_processes": 2}, "require --coordinator=host:port"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "must be host:port"),
        ({"coordinator": "host:99999", "num_processes": 2, "process_id": 0}, "must be host:port"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, "must be 0 to 1"),
        ({"coordinator": "host:1", "num_processes": 0, "process_id": 0}, "--num_processes=0"),
        ({"is_cluster": True, "connect_timeout_s": 0.0}, "--connect_timeout_s=0"),
    ],
)
def test_addresses_that_cannot_be_are_refused(arguments, message):
    given = {"is_cluster": False, "coordinator": None, "num_processes": None, "process_id": None}
    given |= {"connect_timeout_s": 1.0, "lost_timeout_s": 1.0}
    with pytest.raises(ConfigError, match=message):
        distributed.join(**(given | arguments))


if __name__ == "__main__":
    _work(*sys.argv[1:])
