"""The kinds of evaluators, and the evaluators of a config."""

from collections.abc import Mapping

import jax

from vit_registers.config import Data, Model, ObjectiveSettings, Tasks
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.evaluation.classification import CLASSIFICATION
from vit_registers.evaluation.knn import KNN
from vit_registers.evaluation.while_training import make_task_evaluators

# The first evaluator of a config, in this order, ranks the checkpoints.
EVALUATORS: dict[str, EvaluatorKind] = {"classification": CLASSIFICATION, "knn": KNN}


def has_evaluators(objective: ObjectiveSettings, model: Model) -> bool:
    """Whether make_evaluators returns any evaluators."""
    return any(kind.is_for(objective, model) for kind in EVALUATORS.values())


def make_evaluators(
    objective: ObjectiveSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
    tasks: Tasks,
) -> dict[str, Evaluator]:
    """{name in metrics.jsonl: evaluator} for these settings, on `splits`.

    Those of the objective come first, then tasks.while_training.
    """
    made: dict[str, Evaluator] = {}
    for kind in EVALUATORS.values():
        if kind.is_for(objective, model):
            made |= kind.make(objective, model, data, splits, mesh)
    for name, evaluator in make_task_evaluators(tasks, model, data, splits, mesh).items():
        made.setdefault(name, evaluator)  # self-distillation has a k-NN evaluator of its own
    return made
