"""One program at a time writes in a run folder; the lock of a program that has ended blocks no other."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import pytest

from vit_registers import cli
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.runs.checkpoint_folder import find_step_damage, list_steps
from vit_registers.runs.metrics_log import read_records
from vit_registers.storage import run_lock
from vit_registers.storage.run_lock import RunLock, lock_holder

ROUNDS = 10 if "LONG_TESTS" in os.environ else 2
ARGS = (
    "--config=configs/digits.py:registers=0,steps=150",
    "--config.model.depth=1",
    "--config.run.eval_every_steps=50",
    "--config.checkpoint.every_steps=50",
    "--config.checkpoint.keep_last=5",
    "--config.run.use_tensorboard=False",
)


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_of_two_starts_in_one_new_folder_one_trains_and_the_other_is_refused(start, tmp_path, round_number):
    run = tmp_path / "new" / "run"
    programs = [start("train", *ARGS, f"--workdir={run}") for _ in range(2)]
    ends = {program.pid: (*program.communicate(timeout=300), program.returncode) for program in programs}
    (winner, (_, err, won)), (_, (out, refusal, lost)) = sorted(ends.items(), key=lambda end: end[1][2])
    assert (won, lost) == (0, 2), (err, refusal)
    assert out == ""
    assert refusal.startswith(f"error: {run} is in use by process {winner} on {socket.gethostname()} (since ")
    assert refusal.count("\n") == 1
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "parameters.txt",
        "result.json",
    ]
    assert list_steps(str(run)) == [150, 100, 50]
    assert [find_step_damage(str(run), step) for step in (50, 100, 150)] == [None] * 3
    records, damage = read_records(run)
    assert damage is None
    assert [record["step"] for record in records if "test/top1" in record] == [50, 100, 150]
    assert json.loads((run / "result.json").read_text())["metrics"]["test/images"] == 359


def _hold(folder):
    """A process that holds the lock of a folder, and a child of it that outlives it."""
    code = (
        "import subprocess, sys, pathlib; from vit_registers.storage.run_lock import RunLock\n"
        f"lock = RunLock(pathlib.Path({str(folder)!r}))\n"
        "command, pipe = [sys.executable, '-c', 'input()'], subprocess.PIPE\n"
        "child = subprocess.Popen(command, stdin=pipe, close_fds=False)\n"
        "print('held', flush=True); input()"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "held\n"
    return program


def test_the_lock_of_another_process_is_named_and_ends_with_it_even_by_kill_9(tmp_path, run_here):
    program = _hold(tmp_path)
    try:
        before = sorted(tmp_path.iterdir())
        who = f"process {program.pid} on {socket.gethostname()} (since "
        assert lock_holder(tmp_path).startswith(who)
        code, out, err = run_here("train", *ARGS, f"--workdir={tmp_path}")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {tmp_path} is in use by {who}") and err.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before
    finally:
        program.send_signal(signal.SIGKILL)
        program.communicate()
    assert (tmp_path / run_lock.FILE).exists()  # left behind
    assert lock_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert lock_holder(tmp_path).startswith(f"process {os.getpid()} on ")
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on "):
            RunLock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert lock_holder(tmp_path) is None


def test_a_folder_that_took_the_place_of_the_locked_one_has_a_lock_of_its_own(tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    run.mkdir()
    first = RunLock(run)
    run.rename(moved)
    run.mkdir()
    with RunLock(run):
        first.close()  # leaves the other's file
        assert lock_holder(run) is not None
    assert lock_holder(moved) is None
    assert list(moved.iterdir()) == list(run.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_the_file_system_has_no_locks_a_line_says_so(tmp_path, monkeypatch, capsys, code):
    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)  # there is no such file system here
    with RunLock(tmp_path):
        assert lock_holder(tmp_path) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{tmp_path} is not protected against a second program: its file system has no locks" in line
    assert os.strerror(code) in line


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere/at/all")])
def test_a_lock_file_that_cannot_be_opened_is_one_line(tmp_path, make):
    make(tmp_path / run_lock.FILE)
    with pytest.raises(CheckpointError, match=f"{run_lock.FILE} cannot be written: "):
        RunLock(tmp_path)


# --- whether a folder can be written to ------------------------------------------------------


def test_two_programs_that_try_one_folder_do_not_meet_and_leave_nothing(tmp_path):
    def probe(_):
        for _ in range(300):
            assert cli.writable_folder(str(tmp_path), "--workdir") == tmp_path

    with futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(probe, range(4)))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self")):
        with pytest.raises(ConfigError, match=rf"--out={path} cannot be written to: "):
            cli.writable_folder(str(path), "--out")
