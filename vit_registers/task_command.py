"""What `evaluate --task=NAME` does once the checkpoint is open: measures, prints and writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from vit_registers.data.selection import is_image_folder
from vit_registers.digests import text_digest
from vit_registers.errors import ConfigError, UserError
from vit_registers.evaluation.suites import SUITES, Member
from vit_registers.evaluation.task import TaskResult, TaskTable
from vit_registers.evaluation.tasks import TASKS
from vit_registers.frozen_evaluation import Given, open_task, run_task
from vit_registers.loading import ExternalCheckpoint
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.task_output import print_task_table, print_values, write_task

_METRICS = ("top1", "top1_k10", "top5", "top5_k10")  # of a suite's table, where a task has them
_COLUMNS = ("data", "result", "images", "time_s", "note")


def run_command(
    given: Given,
    checkpoint: RunCheckpoint | ExternalCheckpoint,
    overrides: Mapping[str, object],
    folder: epath.Path,
) -> TaskResult:
    """The result of a task, which is printed and written to `folder`."""
    run = open_task(given, checkpoint, overrides)
    measured, result = run_task(run, folder)
    if jax.process_index() == 0:
        _say(measured, result, folder, run.stem)
    return result


def run_suite(
    suite: str,
    given: Given,
    checkpoint: RunCheckpoint | ExternalCheckpoint,
    overrides: Mapping[str, object],
    folder: epath.Path,
) -> TaskResult:
    """A table with the result of the task on each data set of the suite that can be read.

    Others are left out with a line. Each result is also written as that of a single call. Raises ConfigError
    for a task that a suite is not for.
    """
    if TASKS[given.task].is_dense or given.data is not None or given.train_data is not None:
        raise ConfigError(
            f"--suite={suite} says which images, with one label each: leave --data and --train_data out, and "
            "give --task=knn, linear or logistic"
        )
    if jax.process_count() > 1:
        raise ConfigError(
            f"--suite={suite} runs in one process, which uses all devices of its machine: start one, or give "
            "several processes one data set with --data"
        )
    rows: list[tuple[str | int | float | None, ...]] = []
    values: dict[str, float | int | str] = {"suite": suite, "task": given.task}
    step = checkpoint.step
    for member in SUITES[suite]:
        row, found = _measure(member, given, checkpoint, overrides, folder)
        rows.append(row)
        values |= {f"{member.name}/{name}": value for name, value in found.items()}
    values["measured"] = sum(row[1] is not None for row in rows)
    result = TaskResult(values, {"suite": TaskTable(_COLUMNS, rows)})
    params = given.params or checkpoint.eval_params_name
    about = {"checkpoint": given.checkpoint, "step": step, "params": params}
    settings = {name: repr(value) for name, value in sorted(overrides.items())}
    digest = text_digest(repr((given, step, settings)))[:8]
    place = "" if step is None else f"-{step}"
    stem = f"suite-{suite}-{given.task}{place}-{digest}"
    _say(about | dict(values) | {"settings": settings}, result, folder, stem)
    return result


def _measure(
    member: Member,
    given: Given,
    checkpoint: RunCheckpoint | ExternalCheckpoint,
    overrides: Mapping[str, object],
    folder: epath.Path,
) -> tuple[tuple[str | int | float | None, ...], dict[str, float]]:
    """(row of the table, metrics) of one data set; without a result if it cannot be read."""
    name, data_dir = member.name, checkpoint.config.data.data_dir
    if data_dir is not None and is_image_folder(str(Path(data_dir).expanduser() / name)):
        name = str(Path(data_dir).expanduser() / name)
    own = given._replace(data=f"{name}:{member.test}", train_data=f"{name}:{member.train}")
    obstacle = member.obstacle
    if not obstacle:
        try:
            run = open_task(own, checkpoint, overrides)
            measured, result = run_task(run, folder)
            found = {key: float(measured[key]) for key in _METRICS if key in measured}
            print(f"{member.name}: " + "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
            write_task(folder, run.stem, measured, result)
            first = next(iter(found.values()), None)
            return (member.name, first, measured["images"], measured["time_s"], member.note), found
        except UserError as error:
            obstacle = " ".join(str(error).split())
    print(f"{member.name}: left out: {obstacle}", flush=True)
    return (member.name, None, None, None, f"left out: {obstacle}"), {}


def _say(measured: dict[str, Any], result: TaskResult, folder: epath.Path, stem: str) -> None:
    width = print_values(measured, result.notes)
    for title, table in result.tables.items():
        print_task_table(title, table)
    print()
    for path in write_task(folder, stem, measured, result):
        print(f"{'written to':<{width}}{path}")
