"""Evaluates a checkpoint of a run: metrics such as loss, top-1 and top-5 over a split.

    vit-registers evaluate --checkpoint=runs/digits
    vit-registers evaluate --checkpoint=runs/digits@200 --config.data.eval_split=train

Only the run folder is required. --config.data.NAME=VALUE selects other data or preprocessing. A data set with
some of the classes that the run was trained on is matched by name, and other classes are refused. All devices
are used, regardless of how the run was sharded; --config.mesh.NAME=VALUE shards the model over them.

The result is printed, and written to RUN/evaluation/<split>-<step>.json with all data settings. If these
differ from those of the run, the file name ends with their digest, so that no result is overwritten by
another one.

`python -m vit_registers.evaluate` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli

    flags.DEFINE_string("checkpoint", None, "Run folder, or RUN@STEP.")
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the newest intact one if not given.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema", "teacher", "student"],
        "Trained (params, student) or averaged (ema, teacher) ones; by default those of the objective.",
    )
    flags.DEFINE_string("out", None, "Folder for the JSON file; RUN/evaluation if not given.")
    cli.define_settings()
    flags.mark_flags_as_required(["checkpoint"])


startup.begin(__name__, define_flags)

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import config_flags

from vit_registers import cli, loading
from vit_registers import config as config_lib
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import Config
from vit_registers.data.loaders import EvalSplit, check_classes, loader_to_evaluate, open_data
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.evaluation.catalog import has_evaluators, make_evaluators
from vit_registers.interop.hub import is_hub
from vit_registers.interop.opened import describe_normalisation
from vit_registers.objectives.base import find_non_finite
from vit_registers.runs.reading import RunCheckpoint, trained_config
from vit_registers.runtime.compile_cache import use_compile_cache
from vit_registers.runtime.mesh import make_mesh
from vit_registers.status import waiting
from vit_registers.strict_json import dumps
from vit_registers.training import sharding
from vit_registers.training.memory import check_memory


def evaluate(
    run: str, *, step: int | None, overrides: dict[str, object], params: str | None
) -> dict[str, object]:
    """The metrics of a checkpoint of `run`, and the checkpoint, data and settings that they are from."""
    checkpoint = loading.open_run(run, step, overrides)
    config, origin = checkpoint.config, checkpoint.normalisation_origin
    if origin and not overrides.keys() & {"data.mean", "data.std"} and jax.process_index() == 0:
        print(describe_normalisation(config.data, origin), file=sys.stderr)
    mesh = make_mesh(config.mesh)
    is_size_given = "data.eval_batch_size" in overrides
    data = sharding.fit_evaluation(config.data, config.model, mesh, is_size_given=is_size_given)
    config = dataclasses.replace(config, data=data)
    if not has_evaluators(config.objective, config.model):
        raise ConfigError(f"{run} has no head, so there is nothing to evaluate: fine-tune it first")
    config = dataclasses.replace(config, data=loader_to_evaluate(config.data))
    loader, split = open_data(config), config.data.eval_split
    check_memory(config.model, config.data, mesh, training=None)
    table = None
    if config.model.num_classes:
        table = check_classes(loader, config.model.num_classes, checkpoint.class_names)
    with jax.set_mesh(mesh):
        splits = {split: EvalSplit(loader, split, table)}
        evaluators = make_evaluators(config.objective, config.model, config.data, splits, mesh)
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
        "left_out": loader.num_broken,
        "time_s": round(time.monotonic() - started, 3),
        "settings": _settings(config),
    }


def _settings(config: Config) -> dict[str, Any]:
    """All data settings, with an absolute data_dir, and the settings of the computation."""
    data = config.data
    folder = None if data.data_dir is None else os.path.abspath(os.path.expanduser(data.data_dir))
    size = list(config_lib.image_size(config))
    return {
        "data": dataclasses.asdict(data) | {"data_dir": folder, "image_size": size},
        "model": {"dtype": config.model.dtype, "attention": config.model.attention},
    }


def result_path(folder: Path, run: str, result: dict[str, Any]) -> Path:
    """The path <split>-<step>[-ema][-<digest>].json in `folder`.

    The digest is that of the settings that differ from those of the run, except the split and settings
    without effect on the result. Converted weights have no data settings of training: their first result has
    no digest.
    """
    split = result["split"].replace("/", "_")
    params = "" if result["params"] == "params" else f"-{result['params']}"
    plain = folder / f"{split}-{result['step']}{params}.json"
    step = result["step"]
    trained = RunCheckpoint(run=run, step=step, config=trained_config(run, step))
    own = _settings(trained.config)
    if trained.is_converted:
        own = result["settings"]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            own = json.loads(plain.read_text())["settings"]
    there, here = (json.loads(dumps(config_lib.flatten(one))) for one in (own, result["settings"]))
    names = ("data.eval_batch_size", "data.also_eval", "data.eval_split", "model.attention")
    other = {key: here[key] for key in here if key not in names and here[key] != there.get(key)}
    if split != result["split"]:
        other["data.eval_split"] = result["split"]
    digest = text_digest(dumps(other, sort_keys=True))[:8]
    return plain.with_name(f"{plain.stem}-{digest}.json") if other else plain


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    overrides = config_flags.get_override_values(values["config"])
    use_compile_cache(values.config.run.compile_cache, is_quiet=jax.process_index() != 0)
    checkpoint = parse_checkpoint(values.checkpoint, values.step, where="--checkpoint")
    run = checkpoint.path
    if is_hub(run):
        raise ConfigError(f"--checkpoint={run} is not a run folder: make one of it with convert")
    result = evaluate(run, step=checkpoint.step, overrides=overrides, params=values.params)
    if jax.process_index() != 0:
        return
    for name, value in result.items():
        if name == "settings":
            continue
        shown = f"{value:.4f}" if isinstance(value, float) else value
        print(f"{name:<12}{shown}")
    numbers = {key: value for key, value in result.items() if value is None or isinstance(value, int | float)}
    if found := find_non_finite(numbers):
        print(f"{'warning':<12}{found}")
    folder = cli.writable_folder(values.out or f"{run}/evaluation", "--out")
    path = result_path(folder, run, result)
    path.write_text(dumps(result) + "\n")
    print(f"{'written to':<12}{path}")


if __name__ == "__main__":
    cli.run(main)
