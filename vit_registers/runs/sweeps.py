"""The runs of a sweep: their settings, run folders and progress.

The function `sweep(arg)` of a config file yields the points of the sweep: dicts of dotted settings such as
{"model.num_registers": 4, "run.seed": 0}. Each point has a run folder below the work directory, named by its
settings: num_registers=4,seed=0.
"""

import collections
import dataclasses
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from vit_registers.config import Config, flag, flatten, override, to_dict
from vit_registers.config.cards import find_config, load_module
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError
from vit_registers.objectives.base import Best, find_non_finite
from vit_registers.objectives.catalog import best_metric
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.runs.compatibility import check_same_config
from vit_registers.runs.metrics_log import parse_record
from vit_registers.runs.results import FILE, metrics_of
from vit_registers.storage import paths
from vit_registers.storage.files import read_end, read_json_object

SEED = "run.seed"
MAX_NAME = 150  # characters; file systems allow 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One point of a sweep."""

    index: int
    name: str
    folder: epath.Path
    point: Mapping[str, Any]
    config: Config
    arguments: tuple[str, ...]  # of vit_registers.train

    @property
    def best(self) -> Best:
        """The metric that ranks its checkpoints."""
        return best_metric(self.config.objective.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """All runs of a config file, and the file as a module."""

    config: str  # as given: x:arg, or path/x.py:arg
    arg: str | None
    module: ModuleType
    base: Config
    runs: tuple[SweepRun, ...]

    def call(self, name: str, default: Any) -> Any:
        """The result of a function of the config file; `default` if the file lacks it."""
        return call_card(self.module, name, self.arg) if hasattr(self.module, name) else default


def short_keys(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The short name of each setting: its last part, or all of it if two settings share that part."""
    keys = list(dict.fromkeys(key for point in points for key in point))
    ends = collections.Counter(key.rpartition(".")[2] for key in keys)
    return {key: last if ends[last := key.rpartition(".")[2]] == 1 else key for key in keys}


def run_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A readable, distinct folder name for each point.

    It ends with a digest of the point if characters are replaced, if it would be too long, or if two points
    would have the same name. Raises ConfigError if two points are the same.
    """
    short = short_keys(points)

    def text(value: Any) -> str:
        return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)

    plain = [",".join(f"{short[k]}={text(v)}" for k, v in p.items()) or "default" for p in points]
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


def call_card(module: ModuleType, name: str, arg: str | None) -> Any:
    """The result of a function of a config file. Raises ConfigError if it is missing or takes no `arg`."""
    function = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"{module.__file__} has no {name}()")
    try:
        inspect.signature(function).bind(arg)
    except TypeError as error:
        raise ConfigError(f"{module.__file__}: def {name}(arg: str | None = None) is required") from error
    return function(arg)


def parse_arguments(base: ConfigDict, arguments: Sequence[str]) -> Config | None:
    """`base` with arguments of vit_registers.train; None if a flag cannot express one of them."""
    argv = ["train", *(argument for argument in arguments if argument.startswith("--config."))]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError):
        return None
    return flag.read_flag(values["config"])


def make_sweep(config: str, base: Config, common: Mapping[str, Any], workdir: epath.Path) -> Sweep:
    """The sweep of the config file `config`, whose argument follows a colon.

    `base` is its config, with the settings `common` that all runs share. Raises ConfigError for invalid
    points.
    """
    path, colon, text = config.partition(":")
    module, arg = load_module(str(find_config(path))), text if colon else None
    points = [dict(point) for point in call_card(module, "sweep", arg)]
    if not points:
        raise ConfigError(f"{config}: sweep() yields no point")
    for key in common:
        if any(key in point for point in points):
            raise ConfigError(f"--config.{key} is set by the sweep of {config}: leave it out")
    start = flatten(to_dict(base))
    runs = []
    for i, (name, point) in enumerate(zip(run_names(points), points, strict=True)):
        try:
            resolved = override(to_dict(base), point)
        except ConfigError as error:
            raise ConfigError(f"point {i} of the sweep of {config}: {error}") from error
        given = {**{key: start[key] for key in common}, **point}
        # A default of None is left out: the flag of a text setting would read it as text.
        texts = [f"--config.{k}={v}" for k, v in given.items() if v is not None or start[k] is not None]
        folder = workdir / name
        arguments = (f"--config={config}", f"--workdir={folder}", *texts)
        runs.append(
            SweepRun(index=i, name=name, folder=folder, point=point, config=resolved, arguments=arguments)
        )
    return Sweep(config=config, arg=arg, module=module, base=base, runs=tuple(runs))


def read_sweep() -> Sweep:
    """The sweep of the flags --config and --workdir. Raises ConfigError."""
    defined = flags.FLAGS["config"]
    base = flag.read_flag(defined)
    common = config_flags.get_override_values(defined)
    workdir = paths.folder(flags.FLAGS.workdir)
    return make_sweep(config_flags.get_config_filename(defined), base, common, workdir)


def read_result(run: SweepRun) -> dict[str, Any] | None:
    """The result of a run, None if it is not finished.

    Raises ConfigError, which names the differences, if the folder has a run of another config.
    """
    result, saved = read_json_object(run.folder / FILE), read_json_object(run.folder / "config.json")
    # A run without checkpoints may start again with another config.
    if saved is not None and (result is not None or list_steps(str(run.folder))):
        check_same_config(saved, to_dict(run.config), str(run.folder))
    return None if saved is None else result


def last_step(run: SweepRun) -> int:
    """The last step in the metrics of a run, 0 if they are missing or cannot be read."""
    try:
        records = map(parse_record, read_end(run.folder / "metrics.jsonl", 1 << 14).split(b"\n"))
    except OSError:
        return 0
    return max((record["step"] for record in records if record is not None), default=0)


def steps_text(run: SweepRun) -> str:
    """The progress of a run: 'step 120 of 2000'."""
    length = run.config.run
    whole = length.total_steps if length.total_epochs is None else f"{length.total_epochs:g} epochs"
    return f"step {last_step(run)} of {whole}"


def result_text(result: Mapping[str, Any], best: Best) -> str:
    """The metric that ranks checkpoints, by the first evaluator of a finished run, as text."""
    best = best.among(result.get("best") or ())
    metrics, end = result["metrics"], f"/{best.metric}"
    name = next((key.removesuffix(end) for key in metrics if key.endswith(end)), None)
    if name is None:
        shown = f"no {best.metric}"
    else:
        shown = find_non_finite(metrics_of(metrics, name)) or f"{best.metric} {metrics[f'{name}{end}']:.4f}"
    return f"{shown} ({result['time_s']:.0f} s)"
