"""Tasks as evaluators of a run: config.tasks.while_training."""

from collections.abc import Mapping
from typing import Any

import jax

from vit_registers.config import Data, Model, Tasks
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.base import Evaluator
from vit_registers.evaluation.images import ImageTask, TaskImages
from vit_registers.evaluation.task import FrozenModel
from vit_registers.evaluation.tasks import import_task
from vit_registers.objectives.base import BACKBONE

_METRICS = ("top1", "top5", "loss", "held_out_top1", "patch/", "images", "non_finite")


class TaskEvaluator:
    """The Evaluator of a task on the splits of the run: the numbers of its result that are metrics.

    They are computed anew for each call, with the parameters that the objective evaluates.
    """

    def __init__(
        self,
        task: ImageTask,
        tasks: Tasks,
        model: Model,
        data: Data,
        split: EvalSplit,
        mesh: jax.sharding.Mesh,
    ) -> None:
        self._task, self._tasks, self._model, self._data, self._mesh = task, tasks, model, data, mesh
        self._images = TaskImages(EvalSplit(split.loader, data.train_split), data, {"": split})

    def __call__(self, params: Any) -> dict[str, float]:
        """{"top1_k20", ...} or {"top1", ...}, with "images" and "non_finite"."""
        frozen = FrozenModel("the run", self._model, self._data, params[BACKBONE], self._mesh)
        result = self._task.measure(frozen, self._tasks, self._images, folder=None, say=_say_nothing)
        return {
            name: float(value) if isinstance(value, float) else int(value)
            for name, value in result.values.items()
            if name.startswith(_METRICS) and not isinstance(value, str)
        }


def make_task_evaluators(
    tasks: Tasks,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
) -> dict[str, Evaluator]:
    """{task: evaluator} of tasks.while_training, on the first of `splits`."""
    made: dict[str, Evaluator] = {}
    for name in tasks.while_training:
        task = import_task(name)
        assert isinstance(task, ImageTask), name  # config/checks.py
        made[name] = TaskEvaluator(task, tasks, model, data, next(iter(splits.values())), mesh)
    return made


def _say_nothing(line: str) -> None:
    del line
