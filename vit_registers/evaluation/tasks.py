"""The tasks by name: `evaluate --task=NAME`. Imports nothing slow, as the help lists them.

To add one, write its module and add it here.
"""

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vit_registers.evaluation.task import Task


class TaskEntry(NamedTuple):
    """Where a task is, and the data that it is measured on if none is given."""

    module: str  # of vit_registers.evaluation, imported when the task is run
    name: str  # in the module
    is_dense: bool = False  # labels for each pixel: the data of a run have none
    reads: tuple[str, ...] = ()  # the sections of the settings that it reads besides its own
    has_texts: bool = False  # for models with a text tower; reads no training images


TASKS: dict[str, TaskEntry] = {
    "knn": TaskEntry("knn_task", "KNN_TASK"),
    "linear": TaskEntry("linear.task", "LINEAR"),
    "logistic": TaskEntry("logistic_task", "LOGISTIC"),
    "segmentation": TaskEntry("segmentation.task", "SEGMENTATION", is_dense=True),
    "depth": TaskEntry("depth.task", "DEPTH", is_dense=True),
    "zero_shot": TaskEntry("zero_shot.task", "ZERO_SHOT", has_texts=True),
    "zero_shot_segmentation": TaskEntry(
        "zero_shot.segmentation",
        "ZERO_SHOT_SEGMENTATION",
        is_dense=True,
        reads=("segmentation",),
        has_texts=True,
    ),
    "retrieval": TaskEntry("retrieval_task", "RETRIEVAL", has_texts=True),
}


def import_task(name: str) -> "Task":
    """The task of that name."""
    entry = TASKS[name]
    module = importlib.import_module(f"vit_registers.evaluation.{entry.module}")
    return getattr(module, entry.name)
