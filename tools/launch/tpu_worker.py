"""What tools/launch/tpu.py runs on each worker: it installs the wheel, and starts, stops and reports a run.

    python3 tpu_worker.py install WHEEL EXTRAS PYTHON  puts the wheel into venv/
    python3 tpu_worker.py start ATTEMPT GRACE_S COMMAND...
    python3 tpu_worker.py follow ATTEMPT BYTE          prints the log from there until the run ends
    python3 tpu_worker.py stop GRACE_S                 saves and ends the run
    python3 tpu_worker.py status                       reports what runs, or how it ended

All files are in the folder of this file, which tpu.py copies here. It uses the machine's own Python (3.8 or
newer) and nothing but the standard library. gcloud repeats a command whose connection was lost, so each of
these commands may run twice.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MARK = "::vit_registers:: "  # lines for tpu.py begin with it, and continue as JSON; all others are of the log
VARIABLE = "VIT_REGISTERS_ATTEMPT"  # in the environment of all processes of a run: FOLDER:ATTEMPT
ENDED = FOLDER / "ended.json"
_POLL_S = 0.2


def tell(**fields):
    """Prints a line for tpu.py."""
    print(MARK + json.dumps({"host": socket.gethostname(), **fields}), flush=True)


# --- what runs ---------------------------------------------------------------------------------


def processes():
    """{pid: attempt} of all processes of a run in this folder, including those that lost their parent."""
    found = {}
    begin = f"{VARIABLE}={FOLDER}:".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # of another user, or it has just ended
            continue
        for variable in variables:
            if variable.startswith(begin):
                found[int(entry.name)] = variable[len(begin) :].decode()
    return found


def runners(pids):
    """{pid: the command that it runs} of those processes that are `run`, below."""
    found = {}
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[2:3] == ["run"] and Path(words[1]).name == Path(__file__).name:
            found[pid] = words[4:-1]
    return found


def ended():
    """What `run` wrote at its end, or {}."""
    try:
        return json.loads(ENDED.read_text())
    except (OSError, ValueError):
        return {}


def log_of(attempt):
    """The file with the output of an attempt."""
    return FOLDER / f"{attempt}.log"


def status():
    """Reports the attempt that runs, or the last one that ended with the last line of its log."""
    running = processes()
    commands = list(runners(running).values())
    if running:
        attempt = sorted(running.values())[-1]
        tell(running=attempt, command=commands[0] if commands else [])
        return
    last = ended()
    lines = [""]
    if last and log_of(last["attempt"]).exists():
        lines = log_of(last["attempt"]).read_text(errors="replace").splitlines() or [""]
    tell(running=None, code=last.get("code"), line=lines[-1])


# --- commands ----------------------------------------------------------------------------------


def install(wheel, extras, python):
    """Makes venv/ with that version of Python if there is none, and installs the wheel with its extras.

    uv is used because the Python of TPU VM images is older than the package requires (3.10 in Ubuntu 22.04).
    """
    uv = FOLDER / "uv" / "bin" / "uv"
    steps = []
    if not uv.exists():
        steps.append(["python3", "-m", "pip", "install", "--quiet", f"--target={FOLDER / 'uv'}", "uv"])
    if not (FOLDER / "venv" / "bin" / "python").exists():
        steps.append([str(uv), "venv", "--quiet", f"--python={python}", str(FOLDER / "venv")])
    into = ["--quiet", f"--python={FOLDER / 'venv' / 'bin' / 'python'}", "--reinstall-package=vit-registers"]
    steps.append([str(uv), "pip", "install", *into, f"{FOLDER / wheel}[{extras}]"])
    for step in steps:
        done = subprocess.run(
            step, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if done.returncode:
            line = (done.stdout.strip().splitlines() or ["no output"])[-1]
            tell(failed=f"{' '.join(step[:3])}: exit code {done.returncode}: {line}")
            sys.exit(1)


def stop(grace_s):
    """Ends all processes of a run: with SIGTERM, upon which it saves, and after `grace_s` with SIGKILL."""
    running = processes()
    if not running:
        return
    for pid in runners(running):
        send(pid, signal.SIGUSR1)
    if not runners(running):
        for pid in running:
            send(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while processes() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    while processes():
        for pid in processes():
            send(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def send(pid, number):
    """Sends a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def start(attempt, grace_s, command):
    """Stops what is left of other attempts and starts `run`, detached, unless this attempt was started."""
    with open(FOLDER / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a repeated `start` waits for the one whose connection was lost
        if log_of(attempt).exists():
            return
        stop(grace_s)
        with open(log_of(attempt), "wb") as log:
            subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "run", attempt, *command],
                cwd=FOLDER,
                env={**os.environ, VARIABLE: f"{FOLDER}:{attempt}", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the connection may close
            )


def run(attempt, command):
    """Runs the command, and writes how it ended. SIGUSR1 is a request to end, SIGTERM is of the machine."""
    state = {"is_requested": False}
    child = None

    def forward(number, _frame):
        state["is_requested"] |= number == signal.SIGUSR1
        if child is not None:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, forward)
    child = subprocess.Popen(command)
    code = child.wait()
    code = 128 - code if code < 0 else code
    new = ENDED.with_suffix(".new")
    new.write_text(json.dumps({"attempt": attempt, "code": code, **state}))
    new.replace(ENDED)


def follow(attempt, position):
    """Prints the log from byte `position`, says from where, and at the end of the run its exit code.

    It ends when the connection does.
    """
    parent, is_line = os.getppid(), True
    tell(follows=position)
    with open(log_of(attempt), "rb") as log:
        log.seek(position)
        while os.getppid() == parent:
            is_running = attempt in processes().values()
            text = log.read()  # after the question, so that nothing is missed
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
            is_line = text.endswith(b"\n") if text else is_line
            if not is_running:
                if not is_line:
                    print()
                last = ended()
                if last.get("attempt") == attempt:
                    tell(ended=last["code"], is_requested=last["is_requested"])
                else:
                    tell(ended=128 + signal.SIGKILL, is_requested=False)
                return
            time.sleep(1.0 if not text else _POLL_S)


def main(name, *words):
    """One of the commands above."""
    if name == "status":
        status()
    elif name == "install":
        install(*words)
    elif name == "start":
        start(words[0], float(words[1]), words[2:])
    elif name == "stop":
        stop(float(words[0]))
    elif name == "run":
        run(words[0], words[1:])
    elif name == "follow":
        follow(words[0], int(words[1]))
    else:
        sys.exit(f"error: {name}: unknown")


if __name__ == "__main__":
    main(*sys.argv[1:])
