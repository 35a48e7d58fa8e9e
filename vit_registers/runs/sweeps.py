"""The runs of a sweep: which there are, where each lives, and how far it has come.

A sweep is what `sweep(arg)` of a config file yields: dicts of dotted settings such as
{"model.num_registers": 4, "run.seed": 0}. Each has a run folder of its own below the work directory, named by
its settings: num_registers=4,seed=0.
"""

import collections
import dataclasses
import functools
import importlib.util
import inspect
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_registers.config import Config, Model, flag, flatten, override, to_dict
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model
from vit_registers.objectives.base import Best
from vit_registers.objectives.catalog import best_metric
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.runs.compatibility import check_same_config
from vit_registers.runs.metrics_log import parse_record
from vit_registers.runs.results import FILE, non_finite_of

SEED = "run.seed"
MAX_NAME = 150  # characters; file systems take 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One point of a sweep."""

    index: int
    name: str
    folder: Path
    point: Mapping[str, Any]
    config: Config
    arguments: tuple[str, ...]  # of vit_registers.train

    @property
    def best(self) -> Best:
        """The metric that ranks its checkpoints."""
        return best_metric(self.config.objective.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a config file, and the module that it is."""

    config: str  # as given: configs/x.py:arg
    arg: str | None
    module: ModuleType
    base: Config
    runs: tuple[SweepRun, ...]

    def call(self, name: str, default: Any) -> Any:
        """What the config file's function of that name returns; `default` where it has none."""
        return call(self.module, name, self.arg) if hasattr(self.module, name) else default


# --- names -----------------------------------------------------------------------------------


def short_keys(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each setting of the points its last part, or all of it where two settings end alike."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    ends = collections.Counter(key.rpartition(".")[2] for key in keys)
    return {key: last if ends[last := key.rpartition(".")[2]] == 1 else key for key in keys}


def _value_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def run_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder name for each point, readable and distinct.

    A digest of the point follows where characters had to be left out, the name would be too long or two
    points would have the same. Raises ConfigError where two points are the same.
    """
    short = short_keys(points)
    plain = [",".join(f"{short[k]}={_value_text(v)}" for k, v in p.items()) or "default" for p in points]
    safe = [re.sub(r"[^A-Za-z0-9._+=,-]+", "_", name)[:MAX_NAME] for name in plain]
    count = collections.Counter(safe)
    digests = [text_digest(json.dumps(sorted(p.items()), default=repr))[:8] for p in points]
    for i, digest in enumerate(digests):
        if digests.index(digest) != i:
            raise ConfigError(f"points {digests.index(digest)} and {i} of the sweep are the same: {plain[i]}")
    return [
        name if name == whole and count[name] == 1 else f"{name}-{digest}"
        for name, whole, digest in zip(safe, plain, digests, strict=True)
    ]


@functools.cache
def count_parameters(model: Model) -> int:
    """How many parameters a model has, without making any of them. All blocks are alike."""

    def count(depth: int) -> int:
        shapes = abstract_model(dataclasses.replace(model, depth=depth))[1]
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    depth, one = dims(model).depth, count(1)
    return one + (depth - 1) * (count(2) - one) if depth else count(0)


# --- points ----------------------------------------------------------------------------------


def load_module(path: str) -> ModuleType:
    """The config file as a module."""
    spec = importlib.util.spec_from_file_location(f"sweep_of_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # the --config flag has read this Python file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def call(module: ModuleType, name: str, arg: str | None) -> Any:
    """What a function of a config file returns for the config's argument."""
    function = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"{module.__file__} has no {name}()")
    try:
        inspect.signature(function).bind(arg)
    except TypeError as error:
        raise ConfigError(f"{module.__file__}: want def {name}(arg: str | None = None)") from error
    return function(arg)


def parse_arguments(base: ConfigDict, arguments: Sequence[str]) -> Config | None:
    """`base` with these arguments of vit_registers.train; None if a flag cannot express one of them."""
    argv = ["train", *(argument for argument in arguments if argument.startswith("--config."))]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError):
        return None
    return flag.read_flag(values["config"])


def make_sweep(config: str, base: Config, common: Mapping[str, Any], workdir: Path) -> Sweep:
    """The sweep of the config file `config`, whose argument follows a colon.

    `base` is its config with the settings `common` in it, which all runs are given. Raises ConfigError for a
    point that cannot be.
    """
    path, colon, text = config.partition(":")
    module, arg = load_module(path), text if colon else None
    points = [dict(point) for point in call(module, "sweep", arg)]
    if not points:
        raise ConfigError(f"{config}: sweep() yields no point")
    for key in common:
        if any(key in point for point in points):
            raise ConfigError(f"--config.{key} is what the sweep of {config} sets: leave it out")
    start = flatten(to_dict(base))
    runs = []
    for i, (name, point) in enumerate(zip(run_names(points), points, strict=True)):
        try:
            resolved = override(to_dict(base), point)
        except ConfigError as error:
            raise ConfigError(f"point {i} of the sweep of {config}: {error}") from error
        given = {**{key: start[key] for key in common}, **point}
        # None is not said where it already is: flags take it as text for settings that are text.
        texts = [f"--config.{k}={v}" for k, v in given.items() if v is not None or start[k] is not None]
        folder = workdir / name
        arguments = (f"--config={config}", f"--workdir={folder}", *texts)
        runs.append(
            SweepRun(index=i, name=name, folder=folder, point=point, config=resolved, arguments=arguments)
        )
    return Sweep(config=config, arg=arg, module=module, base=base, runs=tuple(runs))


def read_sweep(base: Config) -> Sweep:
    """The sweep of the flags --config and --workdir; `base` is the config of the former."""
    defined = flags.FLAGS["config"]
    common = config_flags.get_override_values(defined)
    workdir = Path(flags.FLAGS.workdir).expanduser()
    return make_sweep(config_flags.get_config_filename(defined), base, common, workdir)


# --- what is in their folders ----------------------------------------------------------------


def _read_json(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for a writer
            raise ConfigError(f"{path} cannot be read: it is not a regular file")
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} cannot be read: it holds no JSON object")
    return value


def read_result(run: SweepRun) -> dict[str, Any] | None:
    """The result of a run, None where it is not finished.

    Raises ConfigError where the folder holds a run of another config, finished or not, and says what differs.
    """
    result, saved = _read_json(run.folder / FILE), _read_json(run.folder / "config.json")
    # A run that has saved nothing yet may start anew with another config.
    if saved is not None and (result is not None or list_steps(str(run.folder))):
        check_same_config(saved, run.config, str(run.folder))
    return None if saved is None else result


def last_step(run: SweepRun) -> int:
    """The last step in the metrics of a run, 0 where it has none that can be read."""
    path = run.folder / "metrics.jsonl"
    try:
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - (1 << 14), 0))
            records = map(parse_record, file.read().split(b"\n"))
    except OSError:
        return 0
    return max((record["step"] for record in records if record is not None), default=0)


def steps_text(run: SweepRun) -> str:
    """How far a run has come: 'step 120 of 2000'."""
    length = run.config.run
    whole = length.total_steps if length.total_epochs is None else f"{length.total_epochs:g} epochs"
    return f"step {last_step(run)} of {whole}"


def result_text(result: Mapping[str, Any], best: Best) -> str:
    """The metric that ranks checkpoints, of a finished run's first evaluator, as text."""
    metrics, end = result["metrics"], f"/{best.metric}"
    name = next((key.removesuffix(end) for key in metrics if key.endswith(end)), None)
    if name is None:
        shown = f"no {best.metric}"
    else:
        shown = non_finite_of(metrics, name) or f"{best.metric} {metrics[f'{name}{end}']:.4f}"
    return f"{shown} ({result['time_s']:.0f} s)"
