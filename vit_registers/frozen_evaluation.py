"""Runs a task of evaluation/tasks.py on a checkpoint: `evaluate --task=NAME`."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath

from vit_registers import status
from vit_registers.analysis.file_names import file_name
from vit_registers.config import Data, Mesh, Model, Tasks, check_section, image_size
from vit_registers.config.tasks import head_settings
from vit_registers.data.loaders import loader_to_evaluate
from vit_registers.data.selection import OF_THE_DATA, require_split, select
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.evaluation.dense.task import splits_of_settings
from vit_registers.evaluation.task import FrozenModel, FrozenTexts, Splits, TaskResult
from vit_registers.evaluation.tasks import TASKS, import_task
from vit_registers.loading import ExternalCheckpoint
from vit_registers.objectives.base import BACKBONE
from vit_registers.runs.class_vector_files import ClassVectorFiles
from vit_registers.runs.reading import INITIAL, RunCheckpoint
from vit_registers.runtime.mesh import make_mesh, ordered_mesh
from vit_registers.storage import paths
from vit_registers.strict_json import dumps
from vit_registers.text_readers import text_reader
from vit_registers.training import sharding
from vit_registers.training.memory import check_memory

_CPU_IMAGES, _CPU_PIXELS = 64, 16 * 224 * 224
_NO_EFFECT = ("eval_batch_size", "also_eval", "batch_size", "train_split", "train_ops", "eval_split")


class Given(NamedTuple):
    """What a user asks for."""

    checkpoint: str  # without its step
    task: str
    data: str | None = None  # NAME:SPLIT or FOLDER:SPLIT
    train_data: str | None = None
    params: str | None = None


class TaskRun(NamedTuple):
    """A task with all that it reads, and the name of its result, which other settings do not have."""

    frozen: FrozenModel
    settings: Tasks
    splits: Splits
    about: dict[str, Any]  # the head of the result
    stem: str
    log_every_s: float


def task_splits(given: Given, data: Data, settings: Tasks, *, is_run: bool) -> Splits:
    """The data of a task: those that are given, those of its settings, or the splits of the run.

    Only dense tasks have such settings, and only the others can use the splits of the run. Raises ConfigError
    if there are none.
    """
    is_dense = TASKS[given.task].is_dense
    if given.data is None and is_dense:
        own = splits_of_settings(given.task, settings, given.train_data)
        if own is not None:
            return own
    if given.data is not None:
        test = require_split(given.data, flag="--data")
    elif is_dense:
        raise ConfigError(
            f"--task={given.task} requires images with a label for each pixel: give --data=NAME:SPLIT; "
            "--data=digit_scenes:test is always there"
        )
    elif not is_run:
        raise ConfigError(
            f"{given.checkpoint} is not a run folder, so the images must be given: --data=FOLDER:SPLIT with "
            "images at FOLDER/SPLIT/CLASS/, or --data=NAME:SPLIT with the name of a data set of TFDS"
        )
    else:
        test = (data.name, data.eval_split)
    if given.train_data is not None:
        return Splits(require_split(given.train_data, flag="--train_data"), test)
    is_own = test[0] == data.name and not is_dense and is_run
    return Splits((test[0], data.train_split if is_own else "train"), test)


def open_task(
    given: Given, checkpoint: RunCheckpoint | ExternalCheckpoint, overrides: Mapping[str, object]
) -> TaskRun:
    """The task on a checkpoint, whose parameters are read. Raises UserErrors, one line each."""
    config = checkpoint.config
    check_section("tasks", config.tasks)
    is_run = checkpoint.step is not None or "data.name" in overrides
    splits = task_splits(given, config.data, config.tasks, is_run=is_run)
    data = config.data
    if not TASKS[given.task].is_dense:
        data = select(data, *splits.test)
        own = {key: getattr(config.data, key) for key in ("data_dir", "image_key", "label_key")}
        data = dataclasses.replace(data, **{k: own[k] for k in own if f"data.{k}" in overrides})
        own = {key: getattr(config.data.captions, key) for key in OF_THE_DATA}
        own = {key: value for key, value in own.items() if f"data.captions.{key}" in overrides}
        data = dataclasses.replace(data, captions=dataclasses.replace(data.captions, **own))
    mesh = ordered_mesh() if config.mesh == Mesh() else make_mesh(config.mesh)
    is_size_given = "data.eval_batch_size" in overrides
    if not is_size_given:
        data = dataclasses.replace(
            data, eval_batch_size=_batch_size(data.eval_batch_size, image_size(config))
        )
    data = sharding.fit_evaluation(data, config.model, mesh, is_size_given=is_size_given)
    data = dataclasses.replace(loader_to_evaluate(data), image_size=image_size(config))
    check_memory(config.model, data, mesh, training=None)
    about = {
        "checkpoint": given.checkpoint,
        "step": checkpoint.step,
        "params": given.params or checkpoint.eval_params_name,
        "task": given.task,
        "data": ":".join(splits.test),
        "train_data": ":".join(splits.train),
    }
    if TASKS[given.task].has_texts:
        del about["train_data"]
    settings = _settings(config.model, data, config.tasks, given.task)
    stem = _stem(about, splits, settings)
    with jax.set_mesh(mesh):
        frozen = _open_model(given, checkpoint, data, mesh, _model_name(about))
    about["settings"] = settings
    return TaskRun(frozen, config.tasks, splits, about, stem, config.run.log_every_s)


def _open_model(
    given: Given,
    checkpoint: RunCheckpoint | ExternalCheckpoint,
    data: Data,
    mesh: jax.sharding.Mesh,
    name: str,
) -> FrozenModel:
    """The parameters of a checkpoint; with those of the text tower if it has one, and the task is for it."""
    is_whole = isinstance(checkpoint, ExternalCheckpoint) and checkpoint.whole is not None
    if is_whole and given.params == INITIAL:
        raise ConfigError("--params=initial: only runs have initial text towers")
    reader = text_reader(checkpoint)
    params = checkpoint.read_params(mesh, given.params)
    texts = None if reader is None else FrozenTexts(params, reader)
    return FrozenModel(name, checkpoint.config.model, data, params[BACKBONE], mesh, texts=texts)


def _batch_size(size: int, image: tuple[int, int]) -> int:
    """data.eval_batch_size, but on a CPU at most 64 images, or as many as have the pixels of 16 of 224 x 224.

    There larger batches are not faster, and the last one is padded: 200 images would take the time of 1,024.
    """
    most = max(min(_CPU_PIXELS // (image[0] * image[1]), _CPU_IMAGES), 1)
    return min(size, most) if jax.default_backend() == "cpu" else size


def run_task(run: TaskRun, folder: epath.Path) -> tuple[dict[str, Any], TaskResult]:
    """(what the JSON file says, the result).

    An interrupted call with the same `folder` is resumed, unless that is in gs://.
    """
    unfinished = None if paths.is_remote(folder) else Path(folder) / "unfinished" / run.stem
    frozen = run.frozen
    if frozen.texts is not None:
        kept = ClassVectorFiles(folder)
        frozen = frozen._replace(texts=frozen.texts._replace(kept=kept))
    started = time.monotonic()
    say = _Lines(run.log_every_s, is_quiet=jax.process_index() != 0)
    try:
        with jax.set_mesh(run.frozen.mesh):
            task = import_task(run.about["task"])
            result = task(frozen, run.settings, run.splits, folder=unfinished, say=say)
    finally:
        status.clear()
    if jax.process_index() == 0 and unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
        if unfinished.parent.is_dir() and not any(unfinished.parent.iterdir()):
            unfinished.parent.rmdir()
    about = {key: value for key, value in run.about.items() if key != "settings"}
    spent_s = round(time.monotonic() - started, 3)
    return about | {**result.values, "time_s": spent_s, "settings": run.about["settings"]}, result


class _Lines:
    """Shows the newest of many lines: in place on a terminal, and from time to time in a log."""

    def __init__(self, log_every_s: float, *, is_quiet: bool):
        self._log_every_s, self._is_quiet = log_every_s, is_quiet
        self._next = time.monotonic() + (0.0 if status.is_live() else log_every_s)

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if self._is_quiet or now < self._next:
            return
        if status.is_live():
            status.show(line)
            self._next = now + status.REFRESH_S
        else:
            status.say(line, sys.stderr)
            self._next = now + self._log_every_s


def _settings(model: Model, data: Data, tasks: Tasks, task: str) -> dict[str, Any]:
    """All that the result depends on besides the checkpoint and the splits."""
    folder = None if data.data_dir is None else str(paths.absolute(data.data_dir))
    own = {name: head_settings(getattr(tasks, name)) for name in (task, *TASKS[task].reads)}
    return {
        "data": dataclasses.asdict(data)
        | {"data_dir": folder, "image_size": list(data.image_size or model.image_size)},
        "model": {"dtype": model.dtype, "attention": model.attention},
        "tasks": {"seed": tasks.seed, **own},
    }


def _stem(about: Mapping[str, Any], splits: Splits, settings: dict[str, Any]) -> str:
    """[<weights>-]<task>-<data>-<split>[-<step>][-ema]-<digest>; the digest is that of all settings."""
    name, split = splits.test
    data = {key: value for key, value in settings["data"].items() if key not in _NO_EFFECT}
    key = [_absolute(splits.train[0]), splits.train[1], _absolute(name), split]
    key += [data, settings["model"]["dtype"], settings["tasks"]]
    if about["task"] == "linear":
        key.append(settings["data"]["also_eval"])
    if about["step"] is None:
        key.append(_absolute(about["checkpoint"]))
    digest = text_digest(dumps(key, sort_keys=True))[:8]
    shown = Path(name).name if Path(name).expanduser().exists() else name
    parts = [about["task"], shown, split]
    parts += [] if about["step"] is None else [str(about["step"])]
    parts += [] if about["params"] == "params" else [about["params"]]
    if about["step"] is None:
        parts.insert(0, Path(about["checkpoint"]).name)
    return f"{file_name('-'.join(parts))}-{digest}"


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _model_name(about: Mapping[str, Any]) -> str:
    name = Path(about["checkpoint"]).name or about["checkpoint"]
    return name if about["step"] is None else f"{name}@{about['step']}"
