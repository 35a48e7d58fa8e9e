"""Evaluates a run: the metrics of its newest checkpoint over a split, such as loss, top-1 and top-5.

    python -m vit_registers.evaluate --checkpoint=runs/digits [--step=200] [--config.data.eval_split=test]

The run folder is all that is needed. --config.data... changes the data. All devices are used, however the run
was sharded; --config.mesh... lays the model over them. A data set with some of the classes that the run was
trained on is matched by name; other classes are refused.

The result is printed, and written as JSON to RUN/evaluation/<split>-<step>.json, with all data settings.
Where these are not the run's, the name ends with a digest of them: results on other data stay side by side.
"""

from vit_registers import startup

startup.begin(__name__)

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from vit_registers import cli, loading
from vit_registers import config as config_lib
from vit_registers.config import Config
from vit_registers.data.loaders import EvalSplit, check_classes, open_data
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.evaluation.catalog import has_evaluators, make_evaluators
from vit_registers.interop.opened import describe_normalisation
from vit_registers.runs.parameters import eval_params_name, is_converted, read_params, trained_config
from vit_registers.runs.ranking import find_non_finite
from vit_registers.strict_json import dumps
from vit_registers.training import sharding
from vit_registers.training.memory import check_memory


def evaluate(
    run: str, *, step: int | None, overrides: dict[str, object], params: str | None
) -> dict[str, object]:
    """The metrics of one checkpoint of `run`, with what they were measured on."""
    step, config = loading.read_config(run, step, overrides)
    origin = loading.normalisation_origin(run, step)
    if origin and not overrides.keys() & {"data.mean", "data.std"} and jax.process_index() == 0:
        print(describe_normalisation(config.data, origin), file=sys.stderr)
    name = params or eval_params_name(run, step, config)
    mesh = sharding.make_mesh(config.mesh)
    is_size_given = "data.eval_batch_size" in overrides
    data = sharding.fit_evaluation(config.data, config.model, mesh, is_size_given=is_size_given)
    config = dataclasses.replace(config, data=data)
    if not has_evaluators(config):
        raise ConfigError(
            f"{run} has no head, so there is nothing to evaluate: fine-tune it first, or add one"
        )
    loader, split = open_data(config), config.data.eval_split
    check_memory(config.model, config.data, mesh, training=None)
    table = None
    if config.model.num_classes:
        table = check_classes(loader, config.model.num_classes, loading.trained_names(run, step))
    with jax.set_mesh(mesh):
        evaluators = make_evaluators(config, {split: EvalSplit(loader, split, table)}, mesh)
        values = read_params(run, step, config, mesh, params=params)
        started = time.monotonic()
        result = {
            metric if evaluator == split else f"{evaluator}/{metric}": value
            for evaluator, evaluate_params in evaluators.items()
            for metric, value in evaluate_params(values).items()
        }
    return {
        "checkpoint": run,
        "step": step,
        "params": name,
        "data": config.data.name,
        "split": split,
        **result,
        "left_out": loader.num_broken,
        "seconds": round(time.monotonic() - started, 3),
        "settings": _settings(config),
    }


def _settings(config: Config) -> dict[str, Any]:
    """What the images and the computation were: all data settings, with an absolute data_dir."""
    data = config.data
    folder = None if data.data_dir is None else os.path.abspath(os.path.expanduser(data.data_dir))
    size = list(config_lib.image_size(config))
    return {
        "data": dataclasses.asdict(data) | {"data_dir": folder, "image_size": size},
        "model": {"dtype": config.model.dtype, "attention": config.model.attention},
    }


def result_path(folder: Path, run: str, result: dict[str, Any]) -> Path:
    """<split>-<step>[-ema][-<digest>].json: the digest is of settings that differ from those of the run.

    Those that leave the result as it is, and the split, are not part of it. Converted weights have no data of
    their own: there the first result has no digest.
    """
    split = result["split"].replace("/", "_")
    params = "" if result["params"] == "params" else f"-{result['params']}"
    plain = folder / f"{split}-{result['step']}{params}.json"
    own = _settings(trained_config(run, result["step"]))
    if is_converted(run, result["step"]):
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
    result = evaluate(values.checkpoint, step=values.step, overrides=overrides, params=values.params)
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
    folder = cli.writable_folder(values.out or f"{values.checkpoint}/evaluation", "--out")
    path = result_path(folder, values.checkpoint, result)
    path.write_text(dumps(result) + "\n")
    print(f"{'written to':<12}{path}")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "Run folder.")
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest intact one if not given.")
    flags.DEFINE_enum(
        "params",
        None,
        ["params", "ema"],
        "The trained parameters or their average; those that the objective evaluates if not given.",
    )
    flags.DEFINE_string("out", None, "Folder for the JSON file; RUN/evaluation if not given.")
    cli.define_settings()
    flags.mark_flags_as_required(["checkpoint"])
    cli.run(main)
