"""Experiment trackers that get the records of metrics.jsonl too: Weights & Biases and MLflow.

A tracker works in a thread of its own. A server that is slow, or fails, neither delays nor stops the run.
"""

import contextlib
import importlib
import json
import logging
import math
import netrc
import os
import queue
import re
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from etils import epath

from vit_registers.config import flatten, lookup
from vit_registers.errors import ConfigError
from vit_registers.status import say
from vit_registers.storage import files
from vit_registers.storage.local_copy import copied_folder

FILE = "trackers.json"  # in the run folder: the run of each tracker, which a resumed run continues
PROJECT = "vit_registers"  # unless the variables of the trackers name another one
_MOST_WAITING = 10_000  # records
_CLOSE_S = 60.0
_writing = threading.Lock()  # of FILE

Settings = Mapping[str, Any]  # of config.to_dict()


class Tracker(Protocol):
    """An open run of a tracker. Its methods may raise anything."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records finite numbers of a step. After a resume, steps may be repeated."""
        ...

    def close(self, *, is_failed: bool) -> None:
        """Ends the run of the tracker; a resumed run opens it again."""
        ...


class Background:
    """A tracker in a thread. The first failure of several in a row is one line; the next records are tried.

    Records that cannot be written are in metrics.jsonl.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], close_s: float = _CLOSE_S):
        self._name, self._open, self._close_s = name, open_tracker, close_s
        self._records: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(_MOST_WAITING)
        self._is_failed, self._has_said = False, False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Hands a record to the thread, without numbers that are not finite. Never waits or raises."""
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        with contextlib.suppress(queue.Full):
            self._records.put_nowait((step, finite))

    def close(self, *, is_failed: bool) -> None:
        """Waits until all records are written, at most 60 s."""
        self._is_failed = is_failed
        with contextlib.suppress(queue.Full):
            self._records.put_nowait(None)
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            say(f"{self._name} does not answer: {self._records.qsize()} records are in metrics.jsonl only")

    def _run(self) -> None:
        try:
            tracker = self._open()
        except Exception as error:
            self._say(error, "the run continues without it")
            return
        while (record := self._records.get()) is not None:
            try:
                tracker.write(*record)
                self._has_said = False
            except Exception as error:
                self._say(error, "the run continues, and metrics.jsonl has all records")
        try:
            tracker.close(is_failed=self._is_failed)
        except Exception as error:
            self._say(error, "metrics.jsonl has all records")

    def _say(self, error: Exception, then: str) -> None:
        if not self._has_said:
            self._has_said = True
            reason = next(iter(str(error).strip().splitlines()), "")[:200]
            say(f"{self._name} cannot be written: {type(error).__name__}: {reason}; {then}")


class _Wandb:
    def __init__(self, settings: Settings, run: epath.Path):
        wandb = importlib.import_module("wandb")
        known = _known(run).get("wandb") or secrets.token_hex(4)
        _remember(run, "wandb", known)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=known,
            resume="allow",
            dir=copied_folder(run),
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # wandb's own steps must not decrease, as those of a resumed run may.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def close(self, *, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))


class _Mlflow:
    def __init__(self, settings: Settings, run: epath.Path):
        # Of a server that does not answer. MLflow's own values add up to minutes for each record.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        mlflow = importlib.import_module("mlflow")
        # They log the creation of a database, and each try to reach a server. Importing mlflow sets a level.
        for name in ("mlflow", "mlflow.store.db.utils", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._entities, self._client = importlib.import_module("mlflow.entities"), mlflow.MlflowClient()
        known = _known(run).get("mlflow")
        self._id = self._resume(known) or self._create(settings, run)
        _remember(run, "mlflow", self._id)

    def _resume(self, known: str | None) -> str | None:
        if known is not None:
            with contextlib.suppress(Exception):  # it was deleted, or is on another server
                self._client.update_run(known, status="RUNNING")
                return known
        return None

    def _create(self, settings: Settings, run: epath.Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        created = self._client.create_run(number, run_name=run.name).info.run_id
        flat = flatten(settings).items()
        params = [self._entities.Param(key, str(value)[:500]) for key, value in flat]
        for start in range(0, len(params), 100):  # the most of a request
            self._client.log_batch(created, params=params[start : start + 100])
        return created

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            # MLflow refuses other characters, such as those of a split "train[:10%]".
            self._entities.Metric(re.sub(r"[^\w\-. :/]", "_", name), value, now_ms, step)
            for name, value in scalars.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, is_failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if is_failed else "FINISHED")


TRACKERS: dict[str, Callable[[Settings, epath.Path], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def tracker_names(writers: str) -> list[str]:
    """The trackers of run.writers. Raises ConfigError for an unknown one, or one that is not installed."""
    names = [name for name in map(str.strip, writers.split(",")) if name]
    for name in names:
        lookup(TRACKERS, name, "run.writers")
        if find_spec(name) is None:
            raise ConfigError(
                f'run.writers={writers}: {name} is not installed: pip install "vit-registers[{name}]"'
            )
        if name == "wandb":
            _check_login(writers)
    return list(dict.fromkeys(names))


def _check_login(writers: str) -> None:
    """Raises ConfigError if wandb would ask for a key."""
    is_online = os.environ.get("WANDB_MODE", "online") in ("online", "run", "shared")
    if not is_online or any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return
    server = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(server):
            return
    raise ConfigError(
        f"run.writers={writers}: wandb has no key of {server}: run `wandb login`, or set WANDB_MODE=offline"
    )


def open_trackers(writers: str, settings: Settings, run: epath.Path) -> list[Background]:
    """The trackers of run.writers, which open their runs in threads and record `settings`.

    Raises as `tracker_names` does.
    """
    return [
        Background(name, lambda open_tracker=TRACKERS[name]: open_tracker(settings, run))
        for name in tracker_names(writers)
    ]


def _known(run: epath.Path) -> dict[str, Any]:
    try:
        found = json.loads(files.read_file(run / FILE))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(run: epath.Path, name: str, known: str) -> None:
    with _writing:
        files.write_json(run / FILE, {**_known(run), name: known})
