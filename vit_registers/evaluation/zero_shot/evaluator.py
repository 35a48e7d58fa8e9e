"""Zero-shot accuracy as an evaluator of a run."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_registers.config import Data, Model, ZeroShotSettings
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.text_vectors import TextReader, image_vectors
from vit_registers.evaluation.zero_shot.classify import class_vectors, zero_shot_metrics
from vit_registers.evaluation.zero_shot.prompts import Prompts, class_prompts
from vit_registers.objectives.image_text.towers import LOG_SCALE


class ClassVectors:
    """The vectors of classes by the parameters, computed once for all splits of an evaluation."""

    def __init__(self, reader: TextReader, prompts: Prompts, mesh: jax.sharding.Mesh) -> None:
        self._reader, self._prompts, self._mesh = reader, prompts, mesh
        self._last: tuple[Any, np.ndarray] | None = None  # a leaf of the parameters, and their vectors

    def __call__(self, params: Any) -> np.ndarray:
        """class_YxE; see class_vectors."""
        if self._last is None or self._last[0] is not params[LOG_SCALE]:
            made = class_vectors(self._reader, params, self._prompts, self._mesh)
            self._last = params[LOG_SCALE], made
        return self._last[1]


class ZeroShotEvaluator:
    """The Evaluator of zero-shot accuracy on a split."""

    def __init__(
        self, classes: ClassVectors, model: Model, data: Data, split: EvalSplit, mesh: jax.sharding.Mesh
    ) -> None:
        self._classes, self._model, self._data = classes, model, data
        self._split, self._mesh = split, mesh

    def __call__(self, params: Any) -> dict[str, float]:
        """{"top1", "top5", "images", "non_finite"}."""
        vectors = image_vectors(self._model, self._data, params, self._split, self._mesh)
        return zero_shot_metrics(self._classes(params), vectors, self._mesh)


def make_zero_shot(
    settings: ZeroShotSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
    reader: TextReader,
) -> dict[str, ZeroShotEvaluator]:
    """{"zero_shot": evaluator} on the first of `splits`, and "zero_shot NAME" on further ones.

    None for data without classes. Raises ConfigError, DataError or MissingPackageError as class_prompts.
    """
    names = next(iter(splits.values())).loader.class_names
    if not names:
        return {}
    classes = ClassVectors(reader, class_prompts(settings, data.captions, names), mesh)
    made = {}
    for name, split in splits.items():
        made["zero_shot" if not made else f"zero_shot {name}"] = ZeroShotEvaluator(
            classes, model, data, split, mesh
        )
    return made
