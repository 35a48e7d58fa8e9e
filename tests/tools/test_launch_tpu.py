"""tools.launch.tpu against stand-ins for gcloud and the workers: each failure, and what it does."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fixtures import gcloud_stand_in as stand_in
from tools.launch import tpu, tpu_worker

POD = ["--name=my-pod", "--zone=z", "--accelerator_type=v4-16", "--runtime_version=v2"]
QUICK = ["--poll_s=0.2", "--restart_delay_s=0.1", "--grace_s=3"]
COMMAND = ["train", "--config=digits", "--workdir=gs://b/a b/$HOME/it's"]
SHORT, LONG = {"run_s": 0.3, "code": 0}, {"run_s": 60, "code": 0}


def command_of(pid):
    """The command line of a process, b"" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


class Place:
    """A launcher beside its stand-ins; `out` and `err` are files."""

    def __init__(self, folder):
        self.folder, self.environment, self.started = folder, stand_in.install(folder), []
        (folder / "x-1-py3-none-any.whl").write_text("")
        self.words = [*POD, *QUICK, f"--wheel={folder}/x-1-py3-none-any.whl"]

    def plan(self, *steps, failures=()):
        (self.folder / "plan.json").write_text(json.dumps(steps))
        (self.folder / "failures.json").write_text(json.dumps(failures))

    def launch(self, *words, command=COMMAND):
        number = len(self.started)
        program = [sys.executable, "-m", "tools.launch.tpu", *self.words, *words, "--", *command]
        with open(self.folder / f"out{number}", "w") as out, open(self.folder / f"err{number}", "w") as err:
            started = subprocess.Popen(program, cwd=ROOT, env=self.environment, stdout=out, stderr=err)
        self.started.append(started)
        return self.started[-1]

    def text(self, name="err", number=-1):
        return (self.folder / f"{name}{number % len(self.started)}").read_text()

    def run(self, *words, command=COMMAND):
        code = self.launch(*words, command=command).wait(60)
        return code, self.text("out"), self.text("err")

    def wait_for(self, text, name="out"):
        deadline = time.monotonic() + 30
        while text not in self.text(name):
            assert time.monotonic() < deadline and self.started[-1].poll() is None, self.text()
            time.sleep(0.05)

    def calls(self, *marks):
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        calls = [" ".join(json.loads(line)) for line in lines]
        return [call for call in calls if all(mark in call for mark in marks)]

    def trainers_of(self, worker):
        pids = stand_in.processes_of(worker, self.folder)
        return [pid for pid in pids if b"gcloud_stand_in.py\0trainer" in command_of(pid)]

    def trainers(self):
        """The number of trainers that run on each worker."""
        return [len(self.trainers_of(worker)) for worker in stand_in.WORKERS]

    def wait_for_no_trainers(self):
        deadline = time.monotonic() + 10
        while self.trainers() != [0, 0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def lose(self, state="SUSPENDED", notice_s=0.0):
        stand_in.remove_nodes(self.folder, notice_s=notice_s)
        stand_in.change("pods", lambda pods: pods["my-pod"].update(state=state), self.folder)


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    for program in place.started:
        program.kill()
        program.wait()
    stand_in.remove_nodes(tmp_path)


def lines_of(out):
    """The numbers of the lines of each attempt, as they were printed."""
    found = {}
    for attempt, line in re.findall(r"^attempt (\d+) line (\d+)$", out, re.MULTILINE):
        found.setdefault(int(attempt), []).append(int(line))
    return found


def test_creates_installs_starts_and_follows(place):
    place.plan(SHORT)
    code, out, err = place.run("--spot", "--create_flag=--network=mine")
    assert code == 0, err
    assert "finished" in out and lines_of(out)[0][:2] == [0, 1]
    assert json.loads(out.splitlines()[0])["arguments"] == [*COMMAND, "--distributed", "--stop_code=75"]
    assert "my-pod is WAITING_FOR_RESOURCES" in err or "my-pod is PROVISIONING" in err
    (create,) = place.calls(" create ")
    assert "--spot --network=mine" in create
    assert len(place.calls(" delete ")) == 0 and "to delete it" in err
    assert [path.read_text() for path in sorted(place.folder.glob("attempts?"))] == ["1", "1"]


@pytest.mark.slow
def test_a_finished_run_deletes_the_pod_if_asked(place):
    place.plan(SHORT)
    assert place.run("--delete_at_end")[0] == 0
    assert json.loads((place.folder / "pods.json").read_text()) == {}

    place.plan(SHORT, SHORT, failures=[{"verb": "delete", "error": "ERROR: later"}])
    code, _, err = place.run("--delete_at_end")
    assert code == 0 and "delete: exit code 1: ERROR: later" in err and "my-pod is still there" in err


@pytest.mark.slow
def test_a_refused_request_ends_it(place):
    why = "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV4PodPerProject' has been exceeded."
    place.plan(failures=[{"verb": "create", "error": why}])
    code, _, err = place.run()
    assert code == 2
    assert err.splitlines()[-1] == f"error: gcloud queued-resources create: exit code 1: {why}"


@pytest.mark.slow
def test_a_request_that_is_not_filled_stays_in_the_queue(place):
    place.plan()
    (place.folder / "stuck").touch()
    code, _, err = place.run("--max_wait_s=1")
    assert code == 3
    assert "error: my-pod is WAITING_FOR_RESOURCES after 1 s (--max_wait_s); it stays in the queue." in err
    assert len(place.calls(" delete ")) == 0 and "queued-resources delete my-pod --force" in err


@pytest.mark.slow
def test_a_request_that_fails_says_why(place):
    place.plan()
    (place.folder / "stuck").touch()
    place.launch()
    place.wait_for("WAITING", "err")
    failed = {"state": "FAILED", "why": "no such type in this zone"}
    stand_in.change("pods", lambda pods: pods["my-pod"].update(failed), place.folder)
    assert place.started[0].wait(30) == 2
    assert place.text().endswith("error: my-pod is FAILED: no such type in this zone\n")


@pytest.mark.parametrize(("notice_s", "state"), [(0.0, "SUSPENDED"), (0.5, "SUSPENDED"), (0.0, "FAILED")])
@pytest.mark.slow
def test_a_preempted_pod_is_created_again(place, notice_s, state):
    """Also if the trainer saved in time."""
    place.plan(LONG, SHORT)
    program = place.launch()
    place.wait_for("attempt 0 line 3")
    place.lose(state, notice_s)
    assert program.wait(60) == 0, place.text()
    assert "attempt 1 line 1" in place.text("out") and "restart 1 of 50" in place.text()
    assert len(place.calls(" create ")) == 2 and len(place.calls(" delete ")) == 1


@pytest.mark.slow
def test_a_deleted_pod_is_created_again_up_to_the_limit(place):
    place.plan(LONG, LONG)
    program = place.launch("--max_restarts=1")
    for attempt in range(2):
        place.wait_for(f"attempt {attempt} line 1")
        stand_in.change("pods", dict.clear, place.folder)
        stand_in.remove_nodes(place.folder)
    assert program.wait(60) == 3
    assert "my-pod is ABSENT: it was restarted 1 times (--max_restarts)" in place.text()


@pytest.mark.slow
def test_a_refused_request_for_a_lost_pod_is_repeated(place):
    place.plan(LONG, SHORT)
    program = place.launch()
    place.wait_for("attempt 0 line 1")
    refusal = {"verb": "create", "error": "ERROR: no capacity"}
    (place.folder / "failures.json").write_text(json.dumps([refusal]))
    place.lose()
    assert program.wait(60) == 0
    assert "create: exit code 1: ERROR: no capacity: restart 2 of 50" in place.text()


@pytest.mark.slow
def test_a_lost_connection_shows_each_line_once_and_leaves_the_run(place):
    """The first drop ends gcloud; at the second gcloud connects again by itself."""
    failures = [
        {"verb": "ssh", "match": " follow ", "drop_s": 1.0},
        {"verb": "ssh", "match": " follow ", "again_s": 1.0},
    ]
    place.plan({"run_s": 4, "code": 0}, failures=failures)
    code, out, err = place.run()
    assert code == 0 and "exited with return code [255].); connecting again" in err
    numbers = lines_of(out)[0]
    assert numbers == list(range(len(numbers))) and len(numbers) > 20
    assert (place.folder / "attempts0").read_text() == "1"


@pytest.mark.slow
def test_a_repeated_start_starts_one_trainer(place):
    failure = {"verb": "ssh", "match": " start ", "again_s": 0.0, "is_left": True}
    place.plan({"run_s": 1, "code": 0}, failures=[failure])
    assert place.run()[0] == 0
    assert [path.read_text() for path in sorted(place.folder.glob("attempts?"))] == ["1", "1"]


@pytest.mark.slow
def test_a_network_that_is_away_changes_nothing(place):
    failures = [{"verb": "list", "error": "ERROR: (gcloud) Could not reach the server"}] * 4
    place.plan({"run_s": 2, "code": 0})
    program = place.launch()
    place.wait_for("attempt 0 line 1")
    (place.folder / "failures.json").write_text(json.dumps(failures))
    assert program.wait(60) == 0 and "restart" not in place.text()
    assert len(json.loads((place.folder / "failures.json").read_text())) < 4


@pytest.mark.slow
def test_one_failed_install_is_repeated_and_three_end_it(place):
    failure = {"verb": "uv", "worker": 1, "error": "error: Failed to fetch: libtpu"}
    place.plan(SHORT, failures=[failure])
    code, _, err = place.run()
    assert code == 0 and re.search(r"exit code 1: \S+: .*uv pip install: .*libtpu; trying again", err), err

    (place.folder / "failures.json").write_text(json.dumps([failure] * 3))
    code, _, err = place.run()
    assert code == 2
    assert err.splitlines()[-1].startswith("error: gcloud tpu-vm ssh: exit code 1: ")
    assert err.splitlines()[-1].endswith("error: Failed to fetch: libtpu")


@pytest.mark.slow
def test_exit_code_2_ends_it(place):
    place.plan({"run_s": 0.2, "code": 2})
    code, _, err = place.run()
    assert code == 2 and "restart" not in err
    assert len(re.findall(r"exit code 2: error: as planned$", err, re.MULTILINE)) == 2  # of both workers


@pytest.mark.slow
def test_exit_code_1_restarts_it_up_to_the_limit(place):
    place.plan({"run_s": 0.2, "code": 1}, {"run_s": 0.2, "code": 7})
    code, _, err = place.run("--max_restarts=1")
    assert code == 7 and "exit code 1: restart 1 of 1" in err
    assert err.count("exit code 7: error: as planned") == 2  # of both workers
    assert len(place.calls(" create ")) == 1  # on the same pod


@pytest.mark.parametrize("is_hung", [False, True])
@pytest.mark.slow
def test_what_is_left_of_an_attempt_is_ended_before_the_next(place, is_hung):
    """Worker 0 fails while worker 1 still runs. The stand-in fails if two trainers run on a worker."""
    place.plan({"run_s": 0.3, "code": 3, "worker_s": {"1": 60}, "is_hung": is_hung}, SHORT)
    code, _, err = place.run("--max_restarts=1", "--grace_s=1")
    assert code == 0 and "still runs" in err
    assert (place.folder / "attempts1").read_text() == "2"
    place.wait_for_no_trainers()


@pytest.mark.slow
def test_ctrl_c_leaves_the_run_which_the_same_command_follows(place):
    place.plan(LONG)
    program = place.launch()
    place.wait_for("attempt 0 line 3")
    program.send_signal(signal.SIGINT)
    assert program.wait(30) == 130
    assert place.trainers() == [1, 1]
    stop, delete = re.findall(r"^  (gcloud .*)$", place.text(), re.MULTILINE)

    follower = place.launch()
    place.wait_for("attempt 0 line 3")
    assert "runs already" in place.text() and (place.folder / "attempts0").read_text() == "1"

    code, _, err = place.run(command=["train", "--config=other"])
    assert code == 2
    assert "error: my-pod runs another command: venv/bin/vit-registers train --config=digits" in err
    assert place.trainers() == [1, 1]

    subprocess.run(stop, shell=True, env=place.environment, check=True, timeout=60)
    assert follower.wait(30) == 0  # stopped by request: finished for now
    assert "saved" in place.text("out", 1)
    place.wait_for_no_trainers()
    subprocess.run(delete, shell=True, env=place.environment, check=True, timeout=60)
    assert json.loads((place.folder / "pods.json").read_text()) == {}


@pytest.mark.slow
def test_another_command_replaces_one_that_saves(place):
    place.plan(LONG, SHORT)
    program = place.launch()
    place.wait_for("attempt 0 line 1")
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 130
    code, out, _ = place.run("--replace", command=["train", "--config=other"])
    assert code == 0 and "attempt 1" in out
    place.wait_for_no_trainers()


@pytest.mark.slow
def test_the_same_command_replaces_one_that_saves_if_asked(place):
    place.plan(LONG, SHORT)
    program = place.launch("--delete_at_end")
    place.wait_for("attempt 0 line 1")
    code, out, _ = place.run("--replace")
    assert code == 0 and "attempt 1" in out and (place.folder / "attempts1").read_text() == "2"
    assert program.wait(30) == 0  # the first launcher: stopped by request
    assert len(place.calls(" delete ")) == 0


@pytest.mark.slow
def test_a_signal_that_was_not_asked_for_restarts_it(place):
    place.plan(LONG, SHORT)
    program = place.launch()
    place.wait_for("attempt 0 line 1")
    for pid in place.trainers_of(0) + place.trainers_of(1):
        os.kill(pid, signal.SIGTERM)
    assert program.wait(60) == 0
    assert "saved after a signal: restart 1 of 50" in place.text()


@pytest.mark.slow
def test_a_run_whose_processes_were_killed_is_restarted(place):
    place.plan(LONG, SHORT)
    program = place.launch()
    place.wait_for("attempt 0 line 1")
    for pid in tpu_worker.runners(stand_in.processes_of(0, place.folder)):
        os.kill(pid, signal.SIGKILL)  # as when memory is short; its trainer is left
    for pid in place.trainers_of(0):
        os.kill(pid, signal.SIGKILL)
    assert program.wait(60) == 0
    assert "exit code 137: restart 1" in place.text()


BAD = {
    "--name=My_Pod": "--name=My_Pod: lower-case letters",
    "--runtime_version=": "--accelerator_type and --runtime_version are required together",
    "--wheel=x.tar.gz": "x.tar.gz: no such file",
    "--file=none.py": "none.py: no such file",
    "--poll_s=0": "--poll_s=0: too small",
    "--poll_s=fast": "argument --poll_s: invalid float value: 'fast'",
    "--grace=1": "unrecognized arguments: --grace=1",
}


@pytest.mark.parametrize("word", BAD)
def test_bad_arguments_are_one_line(word, place, capsys):
    assert tpu.main([*place.words, word, "--", *COMMAND]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {BAD[word]}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "the command must follow `--`"),
        (["--config=digits"], "the command must follow `--`"),
        (["train", "--workdir=runs/x"], "--workdir=runs/x: must be a gs:// folder"),
        (["train", "--workdir", "runs/x"], "--workdir=runs/x: must be a gs:// folder"),
    ],
)
def test_bad_commands_are_one_line(command, said, place, capsys):
    assert tpu.main([*place.words, "--", *command]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}") and err.count("\n") == 1


def test_gcloud_must_be_installed(place, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(place.folder / "empty"))
    assert tpu.main([*place.words, "--", *COMMAND]) == 2
    assert capsys.readouterr().err.startswith("error: gcloud was not found: ")


def test_a_pod_that_is_not_there_needs_its_type(place):
    place.words = [word for word in place.words if not word.startswith(("--acc", "--run"))]
    code, _, err = place.run()
    assert code == 2
    assert err == "error: my-pod is ABSENT: --accelerator_type and --runtime_version create it\n"


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud CLI is not installed")
@pytest.mark.slow
def test_gcloud_knows_the_commands_of_a_dry_run(place, capsys):
    """gcloud checks the flags before it looks for an account, of which there is none."""
    environment = {
        **os.environ,
        "CLOUDSDK_CONFIG": str(place.folder),
        "CLOUDSDK_CORE_PROJECT": "p",
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "PYTHONPATH": "",  # gcloud is a Python program with packages of its own
    }
    assert tpu.main([*place.words, "--dry_run", "--spot", "--delete_at_end", "--", *COMMAND]) == 0
    text = re.sub(r"^#.*$", "", capsys.readouterr().out, flags=re.MULTILINE).replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line]
    assert len(commands) == 9
    for command in commands:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert "You do not currently have an active account selected" in done.stderr, (command, done.stderr)
