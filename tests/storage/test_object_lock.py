"""The lock of a run folder in gs://: one holder, who is noticed when it has ended."""

import json
import subprocess
import sys

import pytest
from etils import epath

from vit_registers.errors import CheckpointError
from vit_registers.storage import object_lock, objects
from vit_registers.storage.object_lock import ObjectLock, object_holder
from vit_registers.storage.run_lock import FILE, lock_holder, lock_run

# Takes the lock of the folder of its argument, says so, and waits.
HOLD = """
import sys, time
from etils import epath
from vit_registers.storage.run_lock import lock_run
with lock_run(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(gs_folder):
    return epath.Path(gs_folder)


@pytest.fixture
def other(run):
    """Another process that holds the lock."""
    program = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "held\n"
    yield program
    program.kill()
    program.communicate()


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(object_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(object_lock, "LOST_S", 1.0)
    monkeypatch.setattr(object_lock, "_POLL_S", 0.05)


def test_a_second_program_is_refused_and_after_the_end_of_the_first_let_in(run, quick_beats):
    with lock_run(run):
        assert "process" in lock_holder(run) and ObjectLock.take(run / FILE) is None
        with pytest.raises(CheckpointError, match="is in use by process"):
            lock_run(run)
    assert lock_holder(run) is None and objects.find_object(run / FILE) is None
    lock_run(run).close()


def test_the_lock_of_a_killed_process_of_this_machine_is_taken_over_at_once(run, other, monkeypatch):
    monkeypatch.setattr(object_lock, "LOST_S", 1e9)
    assert str(other.pid) in lock_holder(run)
    other.kill()
    other.wait()
    assert lock_holder(run) is None
    with lock_run(run) as lock:
        lock.check()


def test_a_lock_that_another_machine_does_not_write_any_more_is_taken_over(run, quick_beats, capsys):
    objects.write_object(
        run / FILE, json.dumps({"name": "process 7 on far", "machine": "far", "pid": 7}).encode()
    )
    assert object_holder(run / FILE) == "process 7 on far"
    with lock_run(run) as lock:
        lock.check()
    assert "is locked by process 7 on far; waiting up to 1 s" in capsys.readouterr().out


def test_a_run_whose_lock_was_taken_over_saves_nothing_more(run, quick_beats):
    with lock_run(run) as lock:
        objects.write_object(run / FILE, json.dumps({"name": "process 7 on far", "id": "x"}).encode())
        with pytest.raises(CheckpointError, match="was taken over by process 7 on far"):
            lock.check()
    assert objects.find_object(run / FILE) is not None  # it is not ours to remove


def test_a_lock_that_was_removed_is_made_again_unless_the_folder_was_removed(run):
    objects.write_object(run / "config.json", b"{}")
    with lock_run(run) as lock:
        objects.remove_objects(run / FILE)
        lock.check()
        assert objects.find_object(run / FILE) is not None
        objects.remove_objects(run)
        with pytest.raises(CheckpointError, match="was removed or emptied"):
            lock.check()


def test_a_lock_is_written_again_while_it_is_held(run, quick_beats):
    import time

    with lock_run(run):
        first, deadline = objects.find_object(run / FILE).generation, time.monotonic() + 10
        while objects.find_object(run / FILE).generation == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
