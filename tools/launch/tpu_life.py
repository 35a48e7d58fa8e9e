"""A run on a Cloud TPU pod: brings the pod up, starts the run, and does both again when the pod is lost."""

import dataclasses
import secrets
import shlex
import sys
import time
from pathlib import Path

from tools.launch import tpu_pod
from tools.launch.tpu_pod import ACTIVE, GONE, LEAVING, Follower, GcloudError, Request

FIXABLE, LOST, INTERRUPTED = 2, 3, 130
STOPPED = 75  # the run saved after a signal, and has steps left: train --stop_code
_REQUESTED = "stopped by request"
_TRIES = 3  # at the first installation
_SIGN_S = 300.0  # a sign of life while it waits


class Refused(Exception):
    """The user must change something; the text is one line."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """What to run, where, and for how long to try."""

    request: Request
    command: tuple[str, ...]  # on the workers
    wheel: str
    files: tuple[str, ...]
    extras: str
    python: str
    is_replaced: bool
    is_deleted_at_end: bool
    max_restarts: int
    max_wait_s: float
    poll_s: float
    restart_delay_s: float
    grace_s: float
    unreachable_s: float


def say(line: str) -> None:
    """Prints a line of this program, apart from those of the log."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


# --- the pod -----------------------------------------------------------------------------------


def bring_up(launch: Launch) -> None:
    """Returns when the pod is ACTIVE: waits for it, creates it, or deletes what is left and creates it.

    Raises TimeoutError after max_wait_s, and GcloudError if it is refused, fails or is deleted.
    """
    request = launch.request
    state, _ = tpu_pod.state(request)
    if state in LEAVING:
        state = _wait(launch, LEAVING)
    if state in GONE:
        if not request.accelerator_type:
            raise Refused(f"{request.name} is {state}: --accelerator_type and --runtime_version create it")
        if state != tpu_pod.ABSENT:
            say(f"{request.name} is {state}: deleting it")
            tpu_pod.call(request.delete())
        say(f"creating {request.name} ({request.accelerator_type}{', spot' if request.is_spot else ''})")
        tpu_pod.call(request.create())
    if state != ACTIVE:
        _wait(launch, None)


def _wait(launch: Launch, during: tuple[str, ...] | None) -> str:
    """The first state that is not one of `during`; with None, ACTIVE."""
    name, seen, begin, spoke = launch.request.name, "", time.monotonic(), 0.0
    while True:
        why = ""
        try:
            state, why = tpu_pod.state(launch.request)
        except GcloudError as error:  # the network is away for a while
            state = f"in an unknown state ({error})"
        waited_s = time.monotonic() - begin
        if state != seen or time.monotonic() - spoke > _SIGN_S:
            say(f"{name} is {state}" + (f" after {waited_s / 60:.0f} min" if waited_s > 60 else ""))
            seen, spoke = state, time.monotonic()
        if state == ACTIVE or (during is not None and state not in during):
            return state
        if during is None and state in GONE:
            raise GcloudError(f"{name} is {state}" + (f": {why}" if why else ""))
        if waited_s > launch.max_wait_s:
            raise TimeoutError(f"{name} is {state} after {waited_s:.0f} s (--max_wait_s)")
        time.sleep(launch.poll_s)


# --- the run -----------------------------------------------------------------------------------


def find(launch: Launch, *, is_replaced: bool) -> str | None:
    """The attempt of this command that runs on all workers, or None. Refused if another command runs.

    With `is_replaced` it is None, whatever runs.
    """
    lines = tpu_pod.call(launch.request.ssh("all", tpu_pod.status_command()))
    told = tpu_pod.messages(lines)
    others = [one for one in told if one["running"] and one["command"] not in ([], list(launch.command))]
    if is_replaced:
        return None
    if others:
        raise Refused(
            f"{launch.request.name} runs another command: {shlex.join(others[0]['command'])}; "
            f"--replace stops it (it saves first)"
        )
    attempts = {one["running"] for one in told}
    if len(attempts) == 1 and not others and all(one["running"] and one["command"] for one in told):
        return attempts.pop()
    return None


def start(launch: Launch) -> str:
    """Installs and starts a new attempt on all workers, and returns its name. Raises GcloudError."""
    say("installing the wheel on all workers")
    files = [launch.wheel, *launch.files]
    tpu_pod.install(launch.request, files, [Path(launch.wheel).name, launch.extras, launch.python])
    attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    tpu_pod.call(launch.request.ssh("all", tpu_pod.start_command(attempt, launch.grace_s, launch.command)))
    say(f"started attempt {attempt} on all workers; the log of worker 0 follows")
    return attempt


def begin(launch: Launch, *, has_run: bool) -> str:
    """The attempt to follow: one that runs already, or a new one.

    Before anything has run, failures are tried again twice: a new worker may not answer yet.
    """
    for left in range(0 if has_run else _TRIES - 1, -1, -1):
        try:
            attempt = find(launch, is_replaced=launch.is_replaced and not has_run)
            if attempt is not None:
                say(f"attempt {attempt} runs already; the log of worker 0 follows")
            return attempt or start(launch)
        except GcloudError as error:
            if not left:
                raise
            say(f"{error}; trying again in {launch.restart_delay_s:g} s")
            time.sleep(launch.restart_delay_s)
    raise AssertionError("unreachable")


def watch(launch: Launch, attempt: str) -> tuple[int | None, str]:
    """(exit code, how it ended) of the attempt; the code is None if the pod was lost or is shut down."""
    position, reached = 0, time.monotonic()
    while True:
        follower = Follower(launch.request, attempt, position, lambda line: print(line, flush=True))
        try:
            lost = _lost_while(launch, follower)
        finally:
            follower.close()
        if follower.ended is not None:
            code = follower.ended["ended"]
            if code != STOPPED:
                return code, f"exit code {code}"
            return (0, _REQUESTED) if follower.ended["is_requested"] else (None, "saved after a signal")
        if lost:
            return None, lost
        if follower.has_connected:
            reached = time.monotonic()
        if time.monotonic() - reached > launch.unreachable_s:
            return None, f"worker 0 was not reached for {launch.unreachable_s:g} s"
        position = follower.position
        say(f"the connection to worker 0 was lost ({follower.reason}); connecting again")
        time.sleep(min(launch.poll_s, 10))


def _lost_while(launch: Launch, follower: Follower) -> str:
    """Why the pod is lost, or "" when the follower has ended."""
    follower.start()
    while True:
        follower.join(launch.poll_s)
        is_over = not follower.is_alive()
        if follower.ended is None:
            try:
                state, _ = tpu_pod.state(launch.request)
            except GcloudError:
                state = ACTIVE  # not known; the log is still followed
            if state in GONE:
                return f"{launch.request.name} is {state}"
        if is_over:
            return ""


def report(launch: Launch) -> None:
    """Says how the attempt ended on each worker."""
    try:
        told = tpu_pod.messages(tpu_pod.call(launch.request.ssh("all", tpu_pod.status_command())))
    except GcloudError as error:
        say(str(error))
        return
    for one in told:
        say(
            f"{one['host']}: "
            + ("still runs" if one["running"] else f"exit code {one['code']}: {one['line']}")
        )


def life(launch: Launch) -> int:
    """The exit code of this program: brings the pod up and runs the command until it has finished."""
    has_run, how = False, ""
    for restart in range(launch.max_restarts + 1):
        code: int | None = None
        try:
            bring_up(launch)
            attempt = begin(launch, has_run=has_run)
            has_run = True
            code, how = watch(launch, attempt)
        except GcloudError as error:
            if not has_run:  # most often quota, permission, a wrong type or a wheel that does not install
                raise Refused(str(error)) from None
            how = str(error)
        if code:
            report(launch)
        if code in (0, FIXABLE):
            return _end(launch, code, how)
        if restart < launch.max_restarts:
            say(f"{how}: restart {restart + 1} of {launch.max_restarts} in {launch.restart_delay_s:g} s")
            time.sleep(launch.restart_delay_s)
    say(f"{how}: it was restarted {launch.max_restarts} times (--max_restarts)")
    return _end(launch, code or LOST, how)


def _end(launch: Launch, code: int, how: str) -> int:
    delete = launch.request.delete()
    if launch.is_deleted_at_end and code == 0 and how != _REQUESTED:  # another launcher may have replaced it
        say(f"deleting {launch.request.name}")
        try:
            tpu_pod.call(delete)
            return code
        except GcloudError as error:
            say(str(error))
    say(f"{launch.request.name} is still there; to delete it:\n  {shlex.join(delete)}")
    return code
