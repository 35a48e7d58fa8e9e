"""Trains on all workers of a Cloud TPU pod, and starts again whenever the pod is lost.

    python -m tools.launch.tpu --name=my-pod --zone=us-central2-b --accelerator_type=v4-32 \\
        --runtime_version=tpu-ubuntu2204-base --spot --wheel=dist/vit_registers-0.1.0-py3-none-any.whl -- \\
        train --config=vit_s16_i1k:registers=4 --workdir=gs://my-bucket/runs/s16

It creates a queued resource, or uses the one of that name; waits until it is ACTIVE; installs the wheel on
every worker; starts the command there with --distributed, detached from ssh; and prints the log of worker 0.
If the pod is preempted or deleted, it creates it again. The same command, called again, follows the run that
it finds.

Exit codes: 0, finished; 2, an error that must be fixed first; 3, the pod was not there in time, or not
reached; 130, ctrl-C: the run goes on; others are those of the last attempt.
"""

import argparse
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tools.launch import tpu_life, tpu_pod
from tools.launch.tpu_life import FIXABLE, INTERRUPTED, LOST, STOPPED, Launch, Refused
from tools.launch.tpu_pod import Request

_VENV = "venv/bin/vit-registers"  # in the folder of tpu_worker.py
_WIDTH = 100


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m tools.launch.tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, help="of the queued resource and its node")
    add("--zone", required=True)
    add("--project", default="", help="default: that of gcloud")
    add("--accelerator_type", default="", help="such as v4-32; not needed for a pod that exists")
    add("--runtime_version", default="", help="such as tpu-ubuntu2204-base")
    add("--spot", action="store_true", help="a pod that may be preempted")
    add("--wheel", required=True, help="`pip wheel --no-deps --wheel-dir=dist .` makes it")
    add("--file", action="append", default=[], help="also copied, such as a config of your own; repeatable")
    add("--extras", default="tpu,data,gcs", help="of the wheel (default: %(default)s)")
    add("--python", default="3.12", help="version of Python on the workers (default: %(default)s)")
    add(
        "--replace",
        action="store_true",
        help="stops what runs on the pod, which saves first, instead of following it",
    )
    add("--delete_at_end", action="store_true", help="deletes the pod when the run has finished")
    add("--dry_run", action="store_true", help="prints the gcloud commands and runs none")
    add("--create_flag", action="append", default=[], help="for `queued-resources create`; repeatable")
    add("--ssh_flag", action="append", default=[], help="for ssh and scp, such as --internal-ip; repeatable")
    add("--max_restarts", type=int, default=50, help="(default: %(default)s)")
    add("--max_wait_s", type=float, default=7 * 86400, help="for the pod to be ACTIVE (default: a week)")
    add("--poll_s", type=float, default=30, help="seconds between looks at the pod (default: %(default)s)")
    add("--restart_delay_s", type=float, default=60, help="(default: %(default)s)")
    add(
        "--grace_s",
        type=float,
        default=120,
        help="for a run to save when it is stopped (default: %(default)s)",
    )
    add(
        "--unreachable_s",
        type=float,
        default=900,
        help="without worker 0 until a restart (default: %(default)s)",
    )
    return parser


def _parse(words: list[str]) -> tuple[Launch, bool]:
    """(the launch, whether it is a dry run). Raises Refused."""
    own, command = words, []
    if "--" in words:
        own, command = words[: words.index("--")], words[words.index("--") + 1 :]
    given = _parser().parse_args(own)
    for flag in ("name", "zone", "project", "accelerator_type", "runtime_version"):
        value = getattr(given, flag)
        if value and not re.fullmatch(r"[a-z0-9][a-z0-9.:-]*", value):
            raise Refused(f"--{flag}={value}: lower-case letters, digits, '-' and '.' are allowed")
    if bool(given.accelerator_type) != bool(given.runtime_version):
        raise Refused("--accelerator_type and --runtime_version are required together")
    for path in [given.wheel, *given.file]:
        if not Path(path).is_file() and not given.dry_run:
            raise Refused(f"{path}: no such file" + ("" if path in given.file else _MAKE_WHEEL))
    if not given.wheel.endswith(".whl"):
        raise Refused(f"--wheel={given.wheel}: not a wheel{_MAKE_WHEEL}")
    for flag in ("max_wait_s", "poll_s", "restart_delay_s", "grace_s", "unreachable_s", "max_restarts"):
        if not getattr(given, flag) >= (0 if flag in ("restart_delay_s", "max_restarts") else 1e-3):
            raise Refused(f"--{flag}={getattr(given, flag):g}: too small")
    _check(command)
    request = Request(
        name=given.name,
        zone=given.zone,
        project=given.project,
        accelerator_type=given.accelerator_type,
        runtime_version=given.runtime_version,
        is_spot=given.spot,
        create_flags=tuple(given.create_flag),
        ssh_flags=tuple(given.ssh_flag),
    )
    launch = Launch(
        request=request,
        command=(_VENV, *command, "--distributed", f"--stop_code={STOPPED}"),
        wheel=given.wheel,
        files=tuple(given.file),
        extras=given.extras,
        python=given.python,
        is_replaced=given.replace,
        is_deleted_at_end=given.delete_at_end,
        max_restarts=given.max_restarts,
        max_wait_s=given.max_wait_s,
        poll_s=given.poll_s,
        restart_delay_s=given.restart_delay_s,
        grace_s=given.grace_s,
        unreachable_s=given.unreachable_s,
    )
    return launch, given.dry_run


_MAKE_WHEEL = "; `pip wheel --no-deps --wheel-dir=dist .` makes one"


def _check(command: list[str]) -> None:
    """Raises Refused if the command cannot run on the workers."""
    if command[:1] != ["train"]:
        raise Refused("the command must follow `--`, such as: -- train --config=digits --workdir=gs://...")
    for word, following in zip(command, [*command[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        value = value if equals else following
        if flag == "--workdir" and not value.startswith(("gs://", "/")):
            raise Refused(
                f"--workdir={value}: must be a gs:// folder, or the absolute path of a share of all workers"
            )


# --- dry run -----------------------------------------------------------------------------------


def _lines(command: list[str]) -> str:
    """The command for a shell, in lines of at most _WIDTH characters where its words allow it."""
    lines = [""]
    for word in command:
        quoted = shlex.quote(word)
        if lines[-1] and len(lines[-1]) + len(quoted) > _WIDTH:
            lines.append("   ")
        lines[-1] += (" " if lines[-1] else "") + quoted
    return " \\\n".join(lines)


def dry_run(launch: Launch) -> str:
    """All gcloud commands in their order, with what each is for."""
    request = launch.request
    install = [Path(launch.wheel).name, launch.extras, launch.python]
    steps = [
        (
            "is it there? then every --poll_s until it is ACTIVE, and while the command runs",
            request.listing(),
        ),
        ("if it is FAILED or SUSPENDED", request.delete()),
        ("if it is not there", request.create()),
        ("what runs there already?", request.ssh("all", tpu_pod.status_command())),
        ("install", request.scp(tpu_pod.WORKER, launch.wheel, *launch.files)),
        ("", request.ssh("all", tpu_pod.worker_command("install", *install))),
        ("start", request.ssh("all", tpu_pod.start_command("ATTEMPT", launch.grace_s, launch.command))),
        ("follow", request.ssh("0", tpu_pod.worker_command("follow", "ATTEMPT", "0"))),
    ]
    if not request.accelerator_type:
        steps = [step for step in steps if step[1] not in (request.delete(), request.create())]
    if launch.is_deleted_at_end:
        steps.append(("when the run has finished", request.delete()))
    return "\n".join(f"# {why}\n{_lines(command)}" if why else _lines(command) for why, command in steps)


# --- main --------------------------------------------------------------------------------------


def _goes_on(launch: Launch) -> str:
    stop = tpu_pod.worker_command("stop", f"{launch.grace_s:g}")
    return (
        f"{launch.request.name} and what runs there go on. To follow it again, repeat this command. To save "
        f"and end the run:\n  {shlex.join(launch.request.ssh('all', stop))}\n"
        f"To delete the pod:\n  {shlex.join(launch.request.delete())}"
    )


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(words: list[str]) -> int:
    """The exit code for these arguments."""
    try:
        launch, is_dry = _parse(words)
        if is_dry:
            print(dry_run(launch))
            return 0
        if shutil.which("gcloud") is None:
            raise Refused(
                "gcloud was not found: install the Google Cloud CLI, and log in with `gcloud auth login`"
            )
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, _interrupt)
        try:
            return tpu_life.life(launch)
        except KeyboardInterrupt:
            print(f"\n{_goes_on(launch)}", file=sys.stderr)
            return INTERRUPTED
        except TimeoutError as error:
            print(f"error: {error}; it stays in the queue. {_goes_on(launch)}", file=sys.stderr)
            return LOST
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return FIXABLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
