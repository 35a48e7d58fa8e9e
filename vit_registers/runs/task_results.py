"""Results of `evaluate --task=NAME` in RUN/evaluation, as they were written for one checkpoint."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from vit_registers.runs.checkpoint_folder import checkpoint_root
from vit_registers.runs.manifest import MANIFEST
from vit_registers.storage import files

_FOLDER = "evaluation"


class TaskNumber(NamedTuple):
    """The main number of a task: its name in a table and its full name, both with the unit, and its value."""

    what: str
    headline: str
    keys: tuple[str, ...]  # of the values, of which the first one that there is counts
    scale: float = 100.0  # from the value to the unit
    error: str | None = None  # the key of its standard error
    count: str = "images"  # the key of the number of images that it is tested on
    is_share_of_images: bool = False  # whose standard error is that of a proportion


_KNN = ("top1_k20", "patch/top1_k20", "top1_k10", "patch/top1_k10")
TASK_NUMBERS: dict[str, TaskNumber] = {
    "knn": TaskNumber("k-NN, %", "frozen features by k-NN, %", _KNN, is_share_of_images=True),
    "linear": TaskNumber(
        "linear, %", "frozen features by a linear head, %", ("top1",), is_share_of_images=True
    ),
    "logistic": TaskNumber(
        "logistic, %", "frozen features by logistic regression, %", ("top1",), is_share_of_images=True
    ),
    "segmentation": TaskNumber(
        "segmentation mIoU, %", "mean IoU from frozen features, %", ("miou",), count="test_images"
    ),
    "depth": TaskNumber(
        "depth RMSE, m", "depth RMSE from frozen features, m", ("rmse",), 1.0, "rmse_se", "test_images"
    ),
    "zero_shot": TaskNumber("zero-shot, %", "zero-shot top-1, %", ("top1",), is_share_of_images=True),
    "zero_shot_segmentation": TaskNumber(
        "zero-shot mIoU, %", "zero-shot mean IoU, %", ("miou",), count="test_images"
    ),
    "retrieval": TaskNumber(
        "image to text R@1, %", "image to text R@1, %", ("image_to_text_r1",), is_share_of_images=True
    ),
}


BASELINES = {"random backbone": "random_backbone", "position only": "position_only"}  # prefixes of keys


class StoredTask(NamedTuple):
    """The result of a task."""

    task: str
    value: float  # in the unit of TASK_NUMBERS
    error: float | None  # its standard error; None: it has none
    count: int  # of test images
    data: str
    train_data: str
    baselines: Mapping[str, float | None]  # the number of each of BASELINES, of tasks that have them
    file: str


def task_number(task: str, values: Mapping[str, Any]) -> tuple[float, float | None, int] | None:
    """(value, standard error, number of test images) of the values of a result; None without a number."""
    number = TASK_NUMBERS[task]
    key = next((key for key in number.keys if _is_number(values.get(key))), None)
    count = values.get(number.count)
    if key is None or not isinstance(count, int):
        return None
    value, error = float(values[key]), None
    if number.error is not None and _is_number(values.get(number.error)):
        error = number.scale * float(values[number.error])
    elif number.is_share_of_images and count and 0 <= value <= 1:
        error = number.scale * math.sqrt(value * (1 - value) / count)
    return number.scale * value, error, count


def task_baselines(task: str, values: Mapping[str, Any]) -> dict[str, float | None]:
    """The number of each of BASELINES, in the unit of TASK_NUMBERS; None where the task has none."""
    number = TASK_NUMBERS[task]
    found = {name: values.get(f"{prefix}_{number.keys[0]}") for name, prefix in BASELINES.items()}
    return {
        name: number.scale * value if _is_number(value) and value is not None else None
        for name, value in found.items()
    }


def results_folder(run: epath.Path) -> epath.Path:
    """Where `evaluate` writes the results of a run by default."""
    return run / _FOLDER


def read_task_results(run: epath.Path, *, step: int, params: str) -> tuple[list[StoredTask], list[str]]:
    """(the results of this checkpoint, the newest last; a line for each file that cannot be used).

    Left out without a line are results of other steps or parameters, and files of other commands. A result
    that is older than the checkpoint is of one that a later training has replaced.
    """
    saved_s = files.modified_s(checkpoint_root(str(run)) / str(step) / MANIFEST)
    found, left_out = [], []
    folder = results_folder(run)
    names = files.names(folder) if files.is_folder(folder) else []
    paths = [folder / name for name in names if name.endswith(".json")]
    written_s = {path: files.modified_s(path) for path in paths}
    for path in sorted(paths, key=lambda path: (written_s[path], path.name)):
        try:
            values = json.loads(files.read_file(path))
        except (OSError, ValueError, RecursionError):
            left_out.append(f"{path} cannot be read")
            continue
        if not isinstance(values, dict) or values.get("task") not in TASK_NUMBERS:
            continue
        if (values.get("step"), values.get("params")) != (step, params):
            continue
        number = task_number(values["task"], values)
        if written_s[path] < saved_s:
            left_out.append(f"{path} is older than the checkpoint of step {step}: run its task again")
        elif number is None:
            left_out.append(f"{path} has no number of its task")
        else:
            data, train_data = (str(values.get(key, "")) for key in ("data", "train_data"))
            baselines = task_baselines(values["task"], values)
            found.append(StoredTask(values["task"], *number, data, train_data, baselines, path.name))
    return found, left_out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
