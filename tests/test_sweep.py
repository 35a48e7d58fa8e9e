"""Nothing runs twice and nothing is lost, whatever is killed; stops, failures, locks and states of runs."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import pytest

from vit_registers import sweep, tabulate
from vit_registers.config import to_dict
from vit_registers.runs import sweep_cells
from vit_registers.storage.run_lock import RunLock

# The same points, one after another in one process, without a sweep. The first has a result of nobody when it
# starts; started again when it is finished, it gets its result where that is missing, and keeps what it has.
REFERENCE = """
import sys
from pathlib import Path
from vit_registers.runs import sweeps
from vit_registers.config import from_mapping
from vit_registers.train import train
from vit_registers.runs.loop import Loop
path, arg, workdir = sys.argv[1:]
base = from_mapping(sweeps.load_module(path).get_config(arg))
first, *others = sweeps.make_sweep(f"{path}:{arg}", base, {}, Path(workdir)).runs
result, run_loop = first.folder / "result.json", Loop.run

def checked(*args):
    assert not result.exists()
    Loop.run = run_loop
    return run_loop(*args)

Loop.run = checked
first.folder.mkdir(parents=True)
result.write_text("of nobody")
train(first.config, str(first.folder))
text = result.read_text()
for there, wanted in ((None, text), (text + " ", text + " ")):
    result.unlink() if there is None else result.write_text(there)
    train(first.config, str(first.folder))
    assert result.read_text() == wanted
for run in others:
    train(run.config, str(run.folder))
"""


def _wait(program, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert program.poll() is None, program.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _finished(work):
    """The bytes and the time of every result.json there is."""
    paths = [run.folder / "result.json" for run in work.runs]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths if path.exists()}


def _starts(run):
    return (run.folder / "log.txt").read_text().count("$ ")


def _steps(run):
    path = run.folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def _kill(program, *, group):
    (os.killpg if group else os.kill)(program.pid, signal.SIGKILL)
    program.wait()


# --- the real thing --------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_sweep_ends_as_runs_that_were_not_killed(launch, make, config, tmp_path):
    work, whole = make("cells=2"), make("cells=2", workdir=tmp_path / "whole")
    reference = launch("-c", REFERENCE, config, "cells=2", tmp_path / "whole")
    command = ("-m", "vit_registers.sweep", f"--config={config}:cells=2", f"--workdir={tmp_path}/work")
    _, second, third, _ = work.runs
    program = launch(*command)
    _wait(program, lambda: (second.folder / "checkpoints" / "4").exists())
    _kill(program, group=True)
    before = _finished(work)
    assert list(before) == [work.runs[0].folder / "result.json"]
    program = launch(*command)
    _wait(program, lambda: (lock := third.folder / ".lock").exists() and "process" in lock.read_text())
    _kill(program, group=False)  # the run goes on
    program = launch(*command)
    out, err = program.communicate(timeout=300)
    assert program.returncode == 0, err
    assert f"[3/4] {third.name}: is running elsewhere (process " in out
    assert out.count(f"{third.name}: top1") == 1
    assert _finished(work).items() >= before.items()
    assert [_starts(run) for run in work.runs] == [1, 2, 1, 1]
    assert "resumes at step" in (second.folder / "log.txt").read_text()

    _, err = reference.communicate(timeout=300)
    assert reference.returncode == 0, err
    for run, other in zip(work.runs, whole.runs, strict=True):
        assert _timeless_metrics(run) == _timeless_metrics(other)
    assert _timeless_table(work) == _timeless_table(whole)


def _timeless_metrics(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in lines if "images_per_s" not in line]


def _timeless_table(work):
    cells = sweep_cells.read_cells(work)
    rows = sweep_cells.make_rows(cells, cells[0], [], metric="test", which="last")
    assert [row.num_runs for row in rows] == [2, 2]
    assert all(row.time_s > 0 and row.std > 0 for row in rows)
    rows = [dataclasses.replace(row, time_s=None) for row in rows]
    return tabulate.markdown(rows, cells[0].labels, title="test top-1 in % (last)")


# --- with a replacement for training ------------------------------------------------------------


@pytest.mark.slow
def test_nothing_runs_twice_and_nothing_is_lost_whatever_is_killed(launch, make, command):
    work = make()
    finished = {}
    for steps, group in ((13, True), (45, False), (90, True)):
        program = launch(*command)
        _wait(program, lambda at=steps: sum(len(_steps(run)) for run in work.runs) >= at)
        _kill(program, group=group)
        assert _finished(work).items() >= finished.items()
        finished = _finished(work)
    program = launch(*command)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert _finished(work).items() >= finished.items()
    assert [_steps(run) for run in work.runs] == [list(range(1, 21))] * 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_is_passed_on_and_exits_with_0(launch, make, command, number):
    work = make()
    program = launch(*command)
    _wait(program, lambda: len(_steps(work.runs[1])) >= 5)
    # ctrl-C on a terminal goes to both of them.
    (os.killpg if number == signal.SIGINT else os.kill)(program.pid, number)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert err == ""
    assert f"[2/8] {work.runs[1].name}: stopped at step " in out
    assert out.splitlines()[-1] == f"{number.name}: stopped; the same command resumes"
    assert not work.runs[2].folder.exists()


@pytest.mark.slow
def test_index_runs_one_and_another_config_is_refused(launch, make, command):
    work = make()
    program = launch(*command, "--index=2")
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert out == f"[3/8] {work.runs[2].name}: top1 0.5000 (0 s)\n"
    assert list(_finished(work)) == [work.runs[2].folder / "result.json"]
    for argument, message in (
        ("--index=8", "has 0 to 7"),
        (
            "--config.model.width=32",
            "num_registers=0,seed=0 holds a run of another config: model.width (16 there",
        ),
    ):
        program = launch(*command, argument)
        out, err = program.communicate(timeout=60)
        assert (program.returncode, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1


@pytest.fixture
def stand_in(fake, monkeypatch):
    """The replacement for train is used in this process too."""
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(fake)))
    monkeypatch.setattr(sweep, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(sweep, "POLL_S", 0.02)
    return fake


@pytest.mark.slow
def test_sweeps_at_once_share_the_runs(make, stand_in, capsys):
    work = make()
    failures = []
    threads = [
        threading.Thread(target=lambda: failures.extend(sweep.work_off(work.runs, 8, False)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [_starts(run) for run in work.runs] == [1] * 8
    assert [_steps(run) for run in work.runs] == [list(range(1, 21))] * 8
    assert "is running elsewhere" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_trains_without_a_sweep_is_left_for_later(make, stand_in, capsys):
    work = make()
    folder = work.runs[1].folder
    folder.mkdir(parents=True)
    lock = RunLock(folder)
    assert sweep.holder(folder).startswith(f"process {os.getpid()} on ")

    def end():
        while not (work.runs[0].folder / "result.json").exists():
            time.sleep(0.002)
        time.sleep(1.0)  # by then it has looked at the second
        lock.close()

    thread = threading.Thread(target=end)
    thread.start()
    assert sweep.work_off(work.runs[:2], 2, False) == []
    thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert any(f"{folder.name}: is running elsewhere (process {os.getpid()} on " in line for line in lines)
    assert lines[-1] == f"[2/2] {folder.name}: top1 0.5000 (0 s)"
    assert _steps(work.runs[1]) == list(range(1, 21))


@pytest.mark.slow
def test_runs_that_fail_do_not_stop_the_others(make, stand_in, capsys):
    work = make()
    names = [run.name for run in work.runs]
    plan = stand_in.parent / "plan.json"
    plan.write_text(json.dumps({names[1]: 2, names[4]: 2}))
    failures = sweep.work_off(work.runs, 8, False)
    assert [(failure.run.index, failure.code) for failure in failures] == [(1, 2), (4, 2)]
    assert failures[0].reason == "failed with exit code 2: error: this is why"
    assert sweep.exit_code(failures) == 2
    assert len(_finished(work)) == 6
    plan.write_text(json.dumps({names[1]: 2, names[4]: "kill"}))
    failures = sweep.work_off(work.runs, 8, False)
    assert failures[1].reason == "failed with SIGKILL: error: this is why"
    assert sweep.exit_code(failures) == 1
    plan.write_text("{}")
    assert sweep.exit_code(sweep.work_off(work.runs, 8, False)) == 0
    assert "finished before" in capsys.readouterr().out


def test_list_shows_the_state_of_each_run(make, stand_in, capsys):
    work = make()
    sweep.work_off(work.runs[:1], 8, False)
    for run, steps in zip(work.runs[1:3], (3, 4), strict=True):
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text(f'{{"step": {steps}}}\n{{"step": 1')  # cut off by a kill
    other = work.runs[3].folder
    (other / "checkpoints" / "4").mkdir(parents=True)
    (other / "config.json").write_text(json.dumps(to_dict(work.runs[2].config)))
    capsys.readouterr()
    with sweep.locked(work.runs[2].folder) as lock:
        assert lock is not None
        sweep.print_runs(work.runs, None)
    lines = capsys.readouterr().out.splitlines()
    texts = [line.split(maxsplit=2)[2] for line in lines]
    assert texts[:2] == ["finished  top1 0.5000 (0 s)", "begun     step 3 of 24"]
    assert texts[2] == "running   step 4 of 24, another program"
    assert texts[3].startswith(f"other config: {other} holds a run of another config: model.num_registers")
    assert texts[4:8] == ["not started"] * 4
    assert lines[8] == "8 runs: 1 finished, 1 begun, 1 running, 1 other config, 4 not started"
    assert not work.runs[4].folder.exists()
