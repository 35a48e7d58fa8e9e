"""Evaluates a checkpoint: metrics such as loss, top-1 and top-5 over a split.

    vit-registers evaluate --checkpoint=runs/digits
    vit-registers evaluate --checkpoint=runs/digits@200 --config.data.eval_split=train
    vit-registers evaluate --checkpoint=weights.pth --config.data.name=folder --config.data.data_dir=root \
        --config.data.eval_split=val

For a run only its folder is required. For weights of another code base, which may be any that `load` takes,
--config.data.name says on which images. --config.data.NAME=VALUE selects other data or preprocessing. A data
set with some of the classes that the model was trained on is matched by name, and other classes are refused.
All devices are used, regardless of how a run was sharded; --config.mesh.NAME=VALUE shards the model over
them.

--task=NAME measures what the frozen features are good for: knn, linear, logistic, segmentation or depth
(docs/evaluation.md), by default on the splits of the run; zero_shot and retrieval compare images with texts
(docs/image_text.md).

    vit-registers evaluate --checkpoint=runs/digits --task=linear
    vit-registers evaluate --checkpoint=weights.pth --task=knn --data=root:val --train_data=root:train
    vit-registers evaluate --checkpoint=runs/digits --task=segmentation --data=digit_scenes:test

The result is printed, and written to RUN/evaluation/<split>-<step>.json with all data settings. If these
differ from those of the run, the file name ends with their digest, so that no result is overwritten by
another one. For weights of another code base it is evaluation/<name>-<split>-<digest>.json. Results of a
task are <task>-<data>-<split>-<step>-<digest>.json, with tables as CSV and pictures as PNG beside it.

Several processes share the images with --distributed or --coordinator, as in train; process 0 writes.

`python -m vit_registers.evaluate` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags

from vit_registers import processes
from vit_registers.evaluation.tasks import TASKS


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli
    from vit_registers.evaluation.suites import SUITES

    flags.DEFINE_string(
        "checkpoint", None, "Run folder, RUN@STEP, weights of another code base, or hf://ORG/NAME."
    )
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest intact one if not given.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema", "teacher", "student", "initial"],
        "Trained (params, student), averaged (ema, teacher) or untrained; by default those of the objective.",
    )
    flags.DEFINE_string(
        "out", None, "Folder for the JSON file; RUN/evaluation, or for other weights evaluation."
    )
    flags.DEFINE_enum("task", None, [*TASKS], "What to measure of the frozen features; docs/evaluation.md.")
    flags.DEFINE_string(
        "data", None, "With --task: the test images, NAME:SPLIT or FOLDER:SPLIT; by default those of the run."
    )
    flags.DEFINE_string(
        "train_data",
        None,
        "With --task: the training images; by default the training split of the same data set.",
    )
    flags.DEFINE_enum("suite", None, [*SUITES], "With --task: the data sets of a paper, one by one.")
    processes.define_flags()
    cli.define_settings()
    flags.mark_flags_as_required(["checkpoint"])


def check_flags() -> None:
    """Raises ConfigError for flags that only a task reads."""
    from vit_registers.errors import ConfigError

    for name in ("data", "train_data", "suite"):
        if flags.FLAGS[name].value is not None and flags.FLAGS.task is None:
            raise ConfigError(
                f"--{name} is for --task={'|'.join(TASKS)}; without a task, "
                "--config.data.name and --config.data.eval_split say on which images"
            )


startup.begin(__name__, define_flags, check_flags, on_refusal=processes.tell_others)

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import config_flags

from vit_registers import cli, loading
from vit_registers import config as config_lib
from vit_registers.analysis.file_names import file_name
from vit_registers.checkpoint_names import CheckpointName, parse_checkpoint
from vit_registers.config import Config
from vit_registers.data.class_names import names_to_match, some
from vit_registers.data.loaders import EvalSplit, Loader, check_classes, loader_to_evaluate, open_data
from vit_registers.digests import text_digest
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.evaluation.catalog import has_evaluators, make_evaluators
from vit_registers.evaluation.images import num_left_out
from vit_registers.frozen_evaluation import Given, task_splits
from vit_registers.interop.hub import is_hub
from vit_registers.interop.opened import describe_normalisation
from vit_registers.models.pixels import require_images
from vit_registers.runs.reading import RunCheckpoint, trained_config
from vit_registers.runtime.compile_cache import use_compile_cache
from vit_registers.runtime.mesh import make_mesh
from vit_registers.status import waiting
from vit_registers.storage import files, paths
from vit_registers.strict_json import dumps
from vit_registers.task_command import run_command, run_suite
from vit_registers.task_output import print_values
from vit_registers.text_readers import text_reader
from vit_registers.training import sharding
from vit_registers.training.memory import check_memory

# That all processes must have alike.
_FLAGS = ("checkpoint", "step", "params", "out", "task", "data", "train_data", "suite")


def open_checkpoint(
    name: CheckpointName, overrides: Mapping[str, object], params: str | None, *, task: str | None = None
) -> RunCheckpoint | loading.ExternalCheckpoint:
    """The checkpoint of a run, or weights of another code base, for which the data must be given.

    A task has other flags for data, so it checks that itself. For a task with texts, the weights are read
    with their text tower.
    """
    if loading.is_run(name.path):
        return loading.open_run(name.path, name.step, overrides)
    if not is_hub(name.path) and not Path(name.path).expanduser().exists():
        raise CheckpointError(f"--checkpoint={name.path}: there is no such run folder, file or folder")
    if (
        name.step is None and task is None and "data.name" not in overrides
    ):  # said before a model is downloaded
        raise ConfigError(
            f"{name.path} is not a run folder, so the images must be given: --config.data.name=folder "
            "--config.data.data_dir=ROOT --config.data.eval_split=val, or the name of a data set of TFDS"
        )
    path = loading.external_path(name)
    is_whole = task is not None and TASKS[task].has_texts
    return loading.open_external(path, overrides, params=params, is_whole=is_whole)


def evaluate(
    run: str, *, step: int | None, overrides: Mapping[str, object], params: str | None
) -> dict[str, object]:
    """The metrics of a checkpoint, and the checkpoint, data and settings that they are from.

    `run` is a run folder or a name of checkpoint_names.py.
    """
    checkpoint = open_checkpoint(parse_checkpoint(run, step, where="--checkpoint"), overrides, params)
    config = checkpoint.config
    _say_normalisation(checkpoint, overrides)
    mesh = make_mesh(config.mesh)
    is_size_given = "data.eval_batch_size" in overrides
    data = sharding.fit_evaluation(config.data, config.model, mesh, is_size_given=is_size_given)
    config = dataclasses.replace(config, data=data)
    if not has_evaluators(config.objective, config.model):
        raise ConfigError(f"{run} has no head, so there is nothing to evaluate: fine-tune it first")
    config = dataclasses.replace(config, data=loader_to_evaluate(config.data))
    loader, split = open_data(config), config.data.eval_split
    check_memory(config.model, config.data, mesh, training=None)
    table = _class_table(run, checkpoint, loader) if config.model.num_classes else None
    with jax.set_mesh(mesh):
        splits = {split: EvalSplit(loader, split, table)}
        evaluators = make_evaluators(
            config.objective, config.model, config.data, splits, mesh, config.tasks, text_reader(checkpoint)
        )
        values = checkpoint.read_params(mesh, params)
        started = time.monotonic()
        is_quiet, long_s = jax.process_index() != 0, config.run.log_every_s
        with waiting("evaluating", said_after_s=long_s, is_quiet=is_quiet, out=sys.stderr):
            result = {
                metric if evaluator == split else f"{evaluator}/{metric}": value
                for evaluator, evaluate_params in evaluators.items()
                for metric, value in evaluate_params(values).items()
            }
    return {
        "checkpoint": run,
        "step": checkpoint.step,
        "params": params or checkpoint.eval_params_name,
        "data": config.data.name,
        "split": split,
        **result,
        "left_out": num_left_out([loader], mesh),
        "time_s": round(time.monotonic() - started, 3),
        "settings": _settings(config),
    }


def _say_normalisation(
    checkpoint: RunCheckpoint | loading.ExternalCheckpoint, overrides: Mapping[str, object]
) -> None:
    origin = checkpoint.normalisation_origin
    if origin and not overrides.keys() & {"data.mean", "data.std"} and jax.process_index() == 0:
        print(describe_normalisation(checkpoint.config.data, origin), file=sys.stderr)


def _class_table(
    run: str, checkpoint: RunCheckpoint | loading.ExternalCheckpoint, loader: Loader
) -> np.ndarray | None:
    """The class of the head for each class of the data set, as check_classes returns it."""
    count, known = checkpoint.config.model.num_classes, checkpoint.class_names
    names = names_to_match(loader.class_names, known, is_converted=checkpoint.is_converted)
    if known is not None and names is None and jax.process_index() == 0:
        print(
            f"data '{loader.name}' has other names of its classes ({some(loader.class_names)}) than the head "
            f"({some(known)}): labels are matched by number"
        )
    if names is None and loader.num_classes != count:
        raise ConfigError(
            f"the head of {run} has {count} classes, whose names are not known, and data '{loader.name}' has "
            f"{loader.num_classes} classes: give data with the same classes, in the same order"
        )
    return check_classes(loader, count, names)


def _settings(config: Config) -> dict[str, Any]:
    """All data settings, with an absolute data_dir, and the settings of the computation."""
    data = config.data
    folder = None if data.data_dir is None else str(paths.absolute(data.data_dir))
    size = list(config_lib.image_size(config))
    return {
        "data": dataclasses.asdict(data) | {"data_dir": folder, "image_size": size},
        "model": {"dtype": config.model.dtype, "attention": config.model.attention},
    }


def result_path(folder: epath.Path, run: str, result: dict[str, Any]) -> epath.Path:
    """The path <split>-<step>[-ema][-<digest>].json in `folder`.

    The digest is that of the settings that differ from those of the run, except the split and settings
    without effect on the result. Converted weights have no data settings of training: their first result has
    no digest. For weights of another code base, the path is <name>-<split>[-ema]-<digest>.json.
    """
    split = result["split"].replace("/", "_")
    params = "" if result["params"] == "params" else f"-{result['params']}"
    if result["step"] is None:
        digest = text_digest(dumps([run, result["settings"]], sort_keys=True))[:8]
        return folder / f"{file_name(Path(run).name)}-{split}{params}-{digest}.json"
    plain = folder / f"{split}-{result['step']}{params}.json"
    step = result["step"]
    trained = RunCheckpoint(run=run, step=step, config=trained_config(run, step))
    own = _settings(trained.config)
    if trained.is_converted:
        own = result["settings"]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            own = json.loads(files.read_file(plain))["settings"]
    there, here = (json.loads(dumps(config_lib.flatten(one))) for one in (own, result["settings"]))
    names = ("data.eval_batch_size", "data.also_eval", "data.eval_split", "model.attention")
    other = {key: here[key] for key in here if key not in names and here[key] != there.get(key)}
    if split != result["split"]:
        other["data.eval_split"] = result["split"]
    digest = text_digest(dumps(other, sort_keys=True))[:8]
    return plain.with_name(f"{plain.stem}-{digest}.json") if other else plain


def evaluate_task(name: CheckpointName, overrides: Mapping[str, object], out: str) -> None:
    """Measures the task of the flags; prints its result and writes it to the folder `out`."""
    values = flags.FLAGS
    given = Given(name.path, values.task, values.data, values.train_data, values.params)
    if not loading.is_run(name.path) and values.suite is None:
        settings = {key: value for key, value in overrides.items() if key.startswith("tasks.")}
        tasks = config_lib.override(config_lib.to_dict(Config()), settings).tasks
        # said before a model is downloaded
        task_splits(given, Config().data, tasks, is_run="data.name" in overrides)
    checkpoint = open_checkpoint(name, overrides, values.params, task=values.task)
    require_images(checkpoint.config.model, name=name.path, command=f"evaluate --task={values.task}")
    _say_normalisation(checkpoint, overrides)
    folder = cli.writable_folder(out, "--out") if jax.process_index() == 0 else paths.folder(out)
    if values.suite is None:
        run_command(given, checkpoint, overrides, folder)
    else:
        run_suite(values.suite, given, checkpoint, overrides, folder)


def main() -> None:
    """The command line."""
    with processes.job(flags.FLAGS.config.run.lost_timeout_s):
        _main()


def _main() -> None:
    values = flags.FLAGS
    overrides = config_flags.get_override_values(values["config"])
    processes.require_same_command(_FLAGS, overrides)
    use_compile_cache(values.config.run.compile_cache, is_quiet=jax.process_index() != 0)
    given = parse_checkpoint(values.checkpoint, values.step, where="--checkpoint")
    is_run = loading.is_run(given.path)
    out = values.out or (f"{given.path}/evaluation" if is_run else "evaluation")
    if values.task is not None:
        evaluate_task(given, overrides, out)
        return
    result = evaluate(given.path, step=given.step, overrides=overrides, params=values.params)
    if jax.process_index() != 0:
        return
    width = print_values(result)
    path = result_path(cli.writable_folder(out, "--out"), given.path, result)
    files.write_json(path, result)
    print(f"{'written to':<{width}}{path}")


if __name__ == "__main__":
    cli.run(main)
