"""The kinds of evaluators, and the evaluators of a config."""

from collections.abc import Mapping

import jax

from vit_registers.config import Data, Model, ObjectiveSettings, Tasks
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.evaluation.classification import CLASSIFICATION
from vit_registers.evaluation.knn import KNN
from vit_registers.evaluation.language_model import LANGUAGE_MODEL
from vit_registers.evaluation.retrieval import make_retrieval
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.evaluation.while_training import make_task_evaluators
from vit_registers.evaluation.zero_shot.evaluator import make_zero_shot

# The first evaluator of a config, in this order, ranks the checkpoints.
EVALUATORS: dict[str, EvaluatorKind] = {
    "classification": CLASSIFICATION,
    "knn": KNN,
    "language_model": LANGUAGE_MODEL,
}


def has_evaluators(objective: ObjectiveSettings, model: Model) -> bool:
    """Whether make_evaluators returns any evaluators."""
    return has_texts(objective) or any(kind.is_for(objective, model) for kind in EVALUATORS.values())


def has_texts(objective: ObjectiveSettings) -> bool:
    """Whether make_evaluators requires a reader of texts."""
    return objective.name == "image_text"


def make_evaluators(
    objective: ObjectiveSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
    tasks: Tasks,
    reader: TextReader | None = None,
) -> dict[str, Evaluator]:
    """{name in metrics.jsonl: evaluator} for these settings, on `splits`.

    Those of the objective come first, then tasks.while_training. `reader` is that of a model of images and
    texts: it has zero-shot accuracy, on data with classes, and retrieval, on data with captions.
    """
    made: dict[str, Evaluator] = {}
    for kind in EVALUATORS.values():
        if kind.is_for(objective, model):
            made |= kind.make(objective, model, data, splits, mesh)
    if reader is not None:
        made |= make_zero_shot(tasks.zero_shot, model, data, splits, mesh, reader)
        made |= make_retrieval(tasks.retrieval, model, data, splits, mesh, reader)
    for name, evaluator in make_task_evaluators(tasks, model, data, splits, mesh).items():
        made.setdefault(name, evaluator)  # self-distillation has a k-NN evaluator of its own
    return made
