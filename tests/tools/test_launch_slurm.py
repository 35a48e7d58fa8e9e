"""tools/launch/slurm.sh on a real SLURM of two nodes: what is saved, and which jobs return to the queue."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.fixtures import digits
from tests.fixtures.slurm import why_not
from vit_registers.runs.checkpoint_folder import newest_intact_step

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "launch" / "slurm.sh"
WHY_NOT = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

STEPS = 120
# vit_registers.train, which before its first restart takes a minute for the steps after the 40th, so that it
# does not end before what a test does to it.
TRAIN = """
import os, runpy, sys, time
from vit_registers.runtime import stopping

ask = stopping.Agreement.is_reached

def is_reached(self, step, request):
    time.sleep(0.75 if step > 40 and "SLURM_RESTART_COUNT" not in os.environ else 0.0)
    return ask(self, step, request)

stopping.Agreement.is_reached = is_reached
sys.path[0] = ""
runpy.run_module("vit_registers.train", run_name="__main__", alter_sys=True)
"""


class Job:
    """A run of two processes, one on each node."""

    def __init__(self, slurm, folder, environment, options, settings):
        self.slurm, self.run, self._out = slurm, folder / "run", folder / "job.out"
        (folder / "train.py").write_text(TRAIN)
        run = {"stop_every_steps": 1}
        flags = digits.flags(f"steps={STEPS}", checkpoint={"every_steps": 20}, run=run)
        trainer = (sys.executable, folder / "train.py", *flags, f"--workdir={self.run}", *settings)
        command = ("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={self._out}")
        environment = environment | {"PYTHONPATH": str(ROOT)}
        # In the folder of the test, where the script puts the compile cache.
        self.number = slurm.run(*command, *options, SCRIPT, *trainer, folder=folder, **environment).strip()

    def wait_for(self, state):
        self.slurm.wait_until(lambda: self.state == state, state, 180, self.log)

    def wait_for_checkpoint(self):
        """Returns when a checkpoint is complete."""
        self.slurm.wait_until(lambda: newest_intact_step(self.run), "checkpoint", 120, self.log)

    @property
    def state(self):
        return self.slurm.job(self.number)["JobState"]

    @property
    def restarts(self):
        return int(self.slurm.job(self.number)["Restarts"])

    def log(self):
        return self._out.read_text() if self._out.exists() else ""

    def steps_of(self, pattern):
        return [int(step) for step in re.findall(pattern, self.log())]

    def assert_saved(self):
        """The step of the last checkpoint, which was saved after SIGTERM and is intact."""
        step = newest_intact_step(self.run)
        assert self.steps_of(r"SIGTERM: saved at step (\d+)") == [step], self.log()
        return step

    def assert_finished(self, resumed_at):
        """It was restarted once, resumed at that step, and did all others."""
        self.wait_for("COMPLETED")
        assert self.steps_of(r"resumes at step (\d+)") == [resumed_at], self.log()
        assert json.loads((self.run / "result.json").read_text())["step"] == STEPS
        assert self.restarts == 1


@pytest.fixture
def submit(slurm, tmp_path, quick):
    """submit("--time=9") -> Job"""

    def submit(*options, settings=(), **environment):
        return Job(slurm, tmp_path, quick() | environment, options, settings)

    return submit


def test_time_limit(submit, slurm, tmp_path):
    """SLURM looks every 30 s for jobs near their limits: the signal comes 20 to 50 s before the end."""
    job = submit("--time=9", "--signal=B:USR1@20", JAX_COMPILATION_CACHE_DIR=None)
    job.wait_for_checkpoint()
    slurm.run("scontrol", "update", f"JobId={job.number}", "EndTime=now+50")
    job.wait_for("PENDING")
    step = job.assert_saved()
    assert "exit code 0, after restart 0: requeued" in job.log()
    assert list((tmp_path / ".jax_cache").glob("*-cache"))
    job.assert_finished(resumed_at=step)


def test_requeue(submit, slurm):
    job = submit()
    job.wait_for_checkpoint()
    slurm.run("scontrol", "requeue", job.number)
    job.wait_for("PENDING")
    step = job.assert_saved()
    job.assert_finished(resumed_at=step)


def test_scancel_ends_the_job(submit, slurm):
    job = submit()
    job.wait_for_checkpoint()
    slurm.run("scancel", job.number)
    job.wait_for("CANCELLED")
    assert job.assert_saved() < STEPS
    assert job.restarts == 0


@pytest.mark.parametrize(("signal", "state"), [("TERM", "COMPLETED"), ("USR1", "PENDING")])
def test_signal_to_the_script(submit, slurm, signal, state):
    """The save may then take longer than KillWait."""
    job = submit()
    job.wait_for_checkpoint()
    slurm.run("scancel", f"--signal={signal}", "--batch", job.number)
    job.wait_for(state)
    assert job.assert_saved() < STEPS
    assert job.restarts == (state == "PENDING")


def test_lost_node(submit, slurm):
    job = submit(settings=("--config.run.lost_timeout_s=5",))
    job.wait_for_checkpoint()
    slurm.kill_node("n2")
    job.wait_for("PENDING")
    step = newest_intact_step(job.run)
    slurm.start_node("n2")
    job.assert_finished(resumed_at=step)


def _preempt(slurm, folder):
    options = ("--partition=urgent", "--nodes=2", "--exclusive", f"--output={folder}/urgent")
    slurm.run("sbatch", *options, "--wrap=sleep 1")


def test_preemption_with_grace(submit, slurm, tmp_path):
    """At the begin of GraceTime, SLURM signals the processes, but not the script."""
    job = submit("--partition=graced")
    job.wait_for_checkpoint()
    _preempt(slurm, tmp_path)
    job.wait_for("PENDING")
    assert job.assert_saved() < STEPS
    assert job.restarts == 1


def test_preemption_that_cancels(submit, slurm, tmp_path):
    job = submit("--partition=cancelled")
    job.wait_for_checkpoint()
    _preempt(slurm, tmp_path)
    job.wait_for("PREEMPTED")
    assert job.assert_saved() < STEPS
    assert job.restarts == 0


def test_what_must_be_fixed_is_not_requeued(submit):
    job = submit(settings=("--config.run.profile_steps=9:1",))
    job.wait_for("FAILED")
    assert "not requeued: exit code 2" in job.log()
    assert (job.restarts, job.slurm.job(job.number)["ExitCode"]) == (0, "2:0")


def test_restarts_are_limited(slurm, tmp_path):
    """A command that fails is started again, at most MAX_RESTARTS times."""
    out = tmp_path / "out"
    command = ("sbatch", "--parsable", "--nodes=1", f"--output={out}", SCRIPT, "sh", "-c", "exit 3")
    number = slurm.run(*command, folder=tmp_path, MAX_RESTARTS="1").strip()
    slurm.wait_until(lambda: slurm.job(number)["JobState"] == "FAILED", "end", 60, out.read_text)
    assert out.read_text().count("requeued") == 2
    assert "not requeued: it was restarted 1 times (MAX_RESTARTS)" in out.read_text()
    assert slurm.job(number)["ExitCode"] == "3:0"
