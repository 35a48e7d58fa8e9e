"""Tasks as evaluators of a run: config.tasks.while_training."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from vit_registers import status
from vit_registers.config import Data, Model, Tasks
from vit_registers.data.loaders import EvalSplit
from vit_registers.errors import ConfigError, TrainingError
from vit_registers.evaluation.base import Evaluator
from vit_registers.evaluation.dense.task import DenseTask, splits_of_settings
from vit_registers.evaluation.images import ImageTask, TaskImages
from vit_registers.evaluation.task import FrozenModel
from vit_registers.evaluation.tasks import import_task
from vit_registers.models.params import abstract_model
from vit_registers.objectives.base import BACKBONE

_METRICS = ("top1", "top5", "loss", "held_out_top1", "patch/", "images", "non_finite")
_NAME = "the run"  # of the model, as errors name it


class ImageTaskEvaluator:
    """The Evaluator of an ImageTask on the splits of the run: the numbers of its result that are metrics.

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
        frozen = FrozenModel(_NAME, self._model, self._data, params[BACKBONE], self._mesh)
        try:
            result = self._task.measure(frozen, self._tasks, self._images, folder=None, say=_say_nothing)
        except TrainingError as error:
            return _not_finite(error, ("top1",))
        return {
            name: float(value) if isinstance(value, float) else int(value)
            for name, value in result.values.items()
            if name.startswith(_METRICS) and not isinstance(value, str)
        }


class DenseTaskEvaluator:
    """The Evaluator of a DenseTask: the main numbers of a head on the parameters, without the baselines.

    The head is trained anew for each call, always from the same initial parameters.
    """

    def __init__(
        self, name: str, task: DenseTask, tasks: Tasks, model: Model, data: Data, mesh: jax.sharding.Mesh
    ) -> None:
        """Opens the data that the settings of the task select.

        Raises ConfigError if there are none, and ConfigError or DataError for what does not fit.
        """
        splits = splits_of_settings(name, tasks)
        if splits is None:
            raise ConfigError(
                f"tasks.while_training has {name}, which requires images with a label for each pixel: set "
                f"tasks.{name}.data=NAME:SPLIT; tasks.{name}.data=digit_scenes:test is always there"
            )
        frozen = FrozenModel(_NAME, model, data, abstract_model(model)[1], mesh)
        self._scores, self._metrics = task.open_scores(frozen, tasks, splits), task.metrics

    def __call__(self, params: Any) -> dict[str, float]:
        """{"miou", ...} or {"rmse", ...}, with "images" and "non_finite"."""
        try:
            return dict(self._scores(params[BACKBONE]))
        except TrainingError as error:
            return _not_finite(error, self._metrics)


def make_task_evaluators(
    tasks: Tasks,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
) -> dict[str, Evaluator]:
    """{task: evaluator} of tasks.while_training, of image tasks on the first of `splits`."""
    made: dict[str, Evaluator] = {}
    for name in tasks.while_training:
        task = import_task(name)
        if isinstance(task, ImageTask):
            made[name] = ImageTaskEvaluator(task, tasks, model, data, next(iter(splits.values())), mesh)
        else:
            assert isinstance(task, DenseTask), name
            made[name] = DenseTaskEvaluator(name, task, tasks, model, data, mesh)
    return made


def _not_finite(error: TrainingError, metrics: tuple[str, ...]) -> dict[str, float]:
    """The metrics of a head that cannot be trained, which must not end the run. The reason is printed."""
    if jax.process_index() == 0:
        status.say(str(error))
    return dict.fromkeys(metrics, math.nan)


def _say_nothing(line: str) -> None:
    del line
