"""RUN/result.json: the metrics of a finished run, and the devices and versions that it used.

Its numbers are read from metrics.jsonl, so that a resumed run has the result of an uninterrupted one. A run
folder has the file if and only if all steps are done.
"""

import importlib.metadata
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vit_registers.errors import TrainingError
from vit_registers.objectives.base import Best
from vit_registers.runs.metrics_log import read_records
from vit_registers.storage.files import write_json

FILE = "result.json"
Evaluations = dict[int, dict[str, float | None]]


def trained_s(run: epath.Path) -> float:
    """Seconds of training of a run, without steps that were lost when it was killed."""
    return max((record["time_s"] for record in read_records(run).records if "time_s" in record), default=0.0)


def commit(folder: Path) -> str | None:
    """The git commit of the checkout that has a package folder, None if there is none.

    "+changes" is added if tracked files differ from it, or if the folder has untracked files.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An installed package may lie in a checkout of another project.
        git("ls-files", "--error-unmatch", "__init__.py")
        head = git("rev-parse", "HEAD")
        is_changed = git("status", "--porcelain", "--untracked-files=no") or git(
            "ls-files", "--others", "--exclude-standard"
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+changes" if is_changed else head


def made_with(attention: str) -> dict[str, Any]:
    """The devices, attention back end, versions of libraries and commit that this process uses."""
    first, count = jax.devices()[0], jax.device_count()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "numpy")}
    return {
        "platform": {"platform": first.platform, "device_kind": first.device_kind, "count": count},
        "attention": attention,
        "versions": {**versions, "python": platform.python_version()},
        "commit": commit(Path(__file__).parents[1]),
    }


def evaluations(records: Sequence[dict[str, Any]], evaluators: Sequence[str]) -> Evaluations:
    """The values of each evaluation, by step: {"<evaluator>/<metric>": value}; None: not finite."""
    names = tuple(f"{name}/" for name in evaluators)
    found: Evaluations = {}
    for record in records:
        # A split may be called "train", which also prefixes the metrics of training steps.
        if "train/grad_norm" not in record:
            values = {key: value for key, value in record.items() if key.startswith(names)}
            if values:
                found.setdefault(record["step"], {}).update(values)
    return found


def metrics_of(values: Mapping[str, float | None], evaluator: str) -> dict[str, float | None]:
    """{metric: value} of one evaluator, from {"<evaluator>/<metric>": value} of all of them."""
    start = f"{evaluator}/"
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def complete_evaluations(
    records: Sequence[dict[str, Any]],
    *,
    evaluators: Sequence[str],
    steps: Iterable[int],
    known: Mapping[int, Mapping[str, float]],
) -> tuple[list[dict[str, Any]], list[int]]:
    """(records of evaluations at `steps` that `records` lack, steps of evaluations that are lost).

    `known` has the values of the first evaluator, from checkpoints. Of the others only its exponential
    average is required, as data.also_eval may change when a run is resumed.
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


def summarize_records(
    records: Sequence[dict[str, Any]], *, evaluators: Sequence[str], total_steps: int, best: Best
) -> dict[str, Any]:
    """The numbers of a finished run, from its metrics.

    "metrics" are those of the last evaluation. "best" is the evaluation by the first evaluator that `best`
    ranks first, the later of equals, as for checkpoints; None if it ranks none. "time_s" is the time from the
    initial state to the last step, with compilation, evaluations and saves, over all starts. "images_per_s"
    is the median of the logged rates.
    """
    found = evaluations(records, evaluators)
    first = evaluators[0] if evaluators else ""
    scores = {step: best.score(metrics_of(values, first)) for step, values in found.items()}
    ranked = [(score, step) for step, score in scores.items() if score is not None]
    best_evaluation = None
    if ranked:
        _, step = max(ranked)
        metric = best.among(metrics_of(found[step], first)).metric
        value = found[step][f"{first}/{metric}"]
        best_evaluation = {"evaluator": first, metric: value, "step": step, "metrics": found[step]}
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
    run: epath.Path,
    *,
    evaluators: Sequence[str],
    total_steps: int,
    params: Any,
    best: Best,
    made: dict[str, Any],
    steps: Iterable[int],
    known: Mapping[int, Mapping[str, float]],
) -> None:
    """Writes RUN/result.json of a finished run; `made` is the result of made_with().

    `steps` are those of the evaluations of the run. For one that metrics.jsonl lacks, the values of the first
    evaluator are taken from `known`. Steps that are in neither are listed under "missing_evaluations", a key
    that exists only then. Raises TrainingError if the file cannot be written.
    """
    records = read_records(run).records
    restored, lost = complete_evaluations(records, evaluators=evaluators, steps=steps, known=known)
    numbers = summarize_records(
        [*records, *restored], evaluators=evaluators, total_steps=total_steps, best=best
    )
    if lost:
        numbers["missing_evaluations"] = lost
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    try:
        write_json(run / FILE, {**numbers, "parameters": parameters, **made})
    except OSError as error:
        raise TrainingError(f"{run / FILE} cannot be written: {error.strerror}") from error
