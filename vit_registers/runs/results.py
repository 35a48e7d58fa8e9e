"""RUN/result.json: what a finished run came to, and what it was made with.

Its numbers are read from metrics.jsonl, so that a run which was stopped and gone on with has the result of
one that was not. A run folder has the file if and only if all steps are done.
"""

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from vit_registers.errors import TrainingError
from vit_registers.objectives.base import Best
from vit_registers.runs.metrics_log import read_records
from vit_registers.runs.ranking import find_non_finite
from vit_registers.strict_json import dumps

FILE = "result.json"
Evaluations = dict[int, dict[str, float | None]]


def write_json(path: Path, values: Any) -> None:
    """Writes `values` so that the file is there as a whole or not at all, whenever the process is killed."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def trained_s(run: Path) -> float:
    """Seconds of training that the run has behind it, counting only work that was kept."""
    return max((record["time_s"] for record in read_records(run).records if "time_s" in record), default=0.0)


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that a package folder lies in, None where there is none.

    "+changes" is added where tracked files differ from it, or the folder has files that git does not know.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed package may lie within a checkout of something else.
        git("ls-files", "--error-unmatch", "__init__.py")
        head = git("rev-parse", "HEAD")
        is_changed = git("status", "--porcelain", "--untracked-files=no") or git(
            "ls-files", "--others", "--exclude-standard"
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+changes" if is_changed else head


def made_with() -> dict[str, Any]:
    """The devices, the versions and the commit of this very process."""
    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")}
    return {
        "platform": {
            "platform": devices[0].platform,
            "device_kind": devices[0].device_kind,
            "count": len(devices),
        },
        "versions": {**versions, "python": platform.python_version()},
        "commit": commit(Path(__file__).parents[1]),
    }


def evaluations(records: Sequence[dict[str, Any]], evaluators: Sequence[str]) -> Evaluations:
    """The values of each evaluation, by step: {"<evaluator>/<metric>": ...}, None where not finite."""
    names = tuple(f"{name}/" for name in evaluators)
    found: Evaluations = {}
    for record in records:
        # A split may be called "train" as well, as the metrics of training steps are.
        if "train/grad_norm" not in record:
            values = {key: value for key, value in record.items() if key.startswith(names)}
            if values:
                found.setdefault(record["step"], {}).update(values)
    return found


def non_finite_of(values: Mapping[str, float | None], evaluator: str) -> str | None:
    """What is not finite in the evaluation by `evaluator`, None where nothing is; see find_non_finite.

    `values` are those of one step, of all evaluators.
    """
    return find_non_finite(metrics_of(values, evaluator))


def metrics_of(values: Mapping[str, float | None], evaluator: str) -> dict[str, float | None]:
    """{name: value} of one evaluator, from {"<evaluator>/<name>": value} of all."""
    start = f"{evaluator}/"
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def complete_evaluations(
    records: Sequence[dict[str, Any]],
    *,
    evaluators: Sequence[str],
    steps: Iterable[int],
    known: Mapping[int, Mapping[str, float]],
) -> tuple[list[dict[str, Any]], list[int]]:
    """Records of the evaluations at `steps` that `records` lack, and the steps where one is still missing.

    `known` has values of the first evaluator, as checkpoints do. Of the others only the average of the same
    split is looked for, as data.also_eval may change while a run goes on.
    """
    if not evaluators:
        return [], []
    steps, first = list(steps), evaluators[0]
    always = [first, *(name for name in evaluators[1:] if name == f"{first}_ema")]

    def lacking(records: Sequence[dict[str, Any]], name: str) -> set[int]:
        return set(steps) - evaluations(records, [name]).keys()

    restored = [
        {"step": step, **{f"{first}/{key}": value for key, value in known[step].items()}}
        for step in sorted(lacking(records, first) & known.keys())
    ]
    return restored, sorted(set().union(*(lacking([*records, *restored], name) for name in always)))


def summarize(
    records: Sequence[dict[str, Any]], *, evaluators: Sequence[str], total_steps: int, best: Best
) -> dict[str, Any]:
    """The numbers of a run that is done, from its metrics.

    "metrics" are those of the last evaluation; "best" is the evaluation of the first evaluator that `best`
    ranks first, the later of equals, as with checkpoints. An evaluation that is not finite, see
    `find_non_finite`, does not count; "best" is None where no other is left. "time_s" lasts from the making
    of the state to the last step, with compilation, evaluations and saves, over all starts; "images_per_s" is
    the median of what was logged.
    """
    found = evaluations(records, evaluators)
    first = evaluators[0] if evaluators else ""
    ranked = [
        (score, step)
        for step, values in found.items()
        if (score := best.score(metrics_of(values, first))) is not None and not non_finite_of(values, first)
    ]
    best_evaluation = None
    if ranked:
        _, step = max(ranked)
        value = found[step][f"{first}/{best.metric}"]
        best_evaluation = {"evaluator": first, best.metric: value, "step": step, "metrics": found[step]}
    rates = [record["images_per_s"] for record in records if "images_per_s" in record]
    times = [record["time_s"] for record in records if "time_s" in record]
    return {
        "step": total_steps,
        "total_steps": total_steps,
        "metrics": found[max(found)] if found else {},
        "best": best_evaluation,
        "time_s": round(max(times, default=0.0), 3),
        "images_per_s": round(statistics.median(rates), 1) if rates else None,
    }


def write_result(
    run: Path,
    *,
    evaluators: Sequence[str],
    total_steps: int,
    params: Any,
    best: Best,
    made: dict[str, Any],
    steps: Iterable[int] = (),
    known: Mapping[int, Mapping[str, float]] = MappingProxyType({}),
) -> None:
    """Writes RUN/result.json of a run that has done all its steps; `made` is of made_with().

    `steps` are those of the evaluations that the run had. Where metrics.jsonl lacks one, `known` counts,
    which has values of the first evaluator; the steps that are in neither are "missing_evaluations", a key
    that is there only then. Raises TrainingError where it cannot be written.
    """
    records = read_records(run).records
    restored, lost = complete_evaluations(records, evaluators=evaluators, steps=steps, known=known)
    numbers = summarize([*records, *restored], evaluators=evaluators, total_steps=total_steps, best=best)
    if lost:
        numbers["missing_evaluations"] = lost
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    try:
        write_json(run / FILE, {**numbers, "parameters": parameters, **made})
    except OSError as error:
        raise TrainingError(f"{run / FILE} cannot be written: {error.strerror}") from error
