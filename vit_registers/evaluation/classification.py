"""Loss, top-1 and top-5 over a split, each image once. An image may have several correct labels."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.config import ClassificationSettings, Data, Model, ObjectiveSettings
from vit_registers.data.batch import IMAGE, LABEL, Batch, normalize, relabel
from vit_registers.data.loaders import EvalSplit
from vit_registers.data.prefetch import in_turn
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.models.params import abstract_model, build_model
from vit_registers.objectives.base import BACKBONE, Sums, add_sums
from vit_registers.objectives.losses import is_finite, make_loss_per_example
from vit_registers.training.sharding import batch_sharding, replicated

MOST_CLASSES_WITHOUT_TOP5 = 5  # with five classes or fewer, top-5 would always be 1


def classification_sums(
    logits_BxY: jax.Array, label_BxK: jax.Array, mask_B: jax.Array, loss_B: jax.Array
) -> Sums:
    """Sums of loss, top1, top5 (only with more than five classes) and non_finite over mask_B.

    Each label of an example is correct; -1 is padding. Examples without a label do not count
    (arXiv:2006.07159, section 4). The rank of a label is the number of classes with a higher logit, plus that
    of earlier classes with an equal one. An example with a non-finite logit is wrong, and counts in
    non_finite.
    """
    num_classes = logits_BxY.shape[-1]
    label_BxKx1 = label_BxK[..., None]
    own_BxKx1 = jnp.take_along_axis(logits_BxY[:, None], jnp.maximum(label_BxKx1, 0), axis=-1)
    logits_Bx1xY = logits_BxY[:, None]
    is_before_BxKxY = jnp.arange(num_classes)[None, None] < label_BxKx1
    is_ahead_BxKxY = (logits_Bx1xY > own_BxKx1) | ((logits_Bx1xY == own_BxKx1) & is_before_BxKxY)
    is_class_BxK = (label_BxK >= 0) & (label_BxK < num_classes)  # beyond the last class, `own` is NaN
    rank_B = jnp.where(is_class_BxK, is_ahead_BxKxY.sum(axis=-1), num_classes).min(axis=-1)
    mask_B &= (label_BxK >= 0).any(axis=-1)
    ranked_B = mask_B & is_finite(logits_BxY)
    count = mask_B.sum(dtype=jnp.int32)
    sums = {
        "loss": jnp.where(mask_B, loss_B, 0.0).sum(),
        "top1": (ranked_B & (rank_B < 1)).sum(dtype=jnp.int32),
        "top5": (ranked_B & (rank_B < 5)).sum(dtype=jnp.int32),
        "non_finite": (mask_B & ~ranked_B).sum(dtype=jnp.int32),
    }
    if num_classes <= MOST_CLASSES_WITHOUT_TOP5:
        del sums["top5"]
    return {name: (value, count) for name, value in sums.items()}


def classification_metrics(sums: Sums) -> dict[str, float]:
    """The means of loss, top1 and top5, the number of "images", and the number of "non_finite" ones."""
    non_finite, count = sums["non_finite"]
    names = [name for name in ("loss", "top1", "top5") if name in sums]
    means = {name: float(sums[name][0]) / max(int(count), 1) for name in names}
    return {**means, "images": int(count), "non_finite": int(non_finite)}


class ClassificationEvaluator:
    """The Evaluator that computes classification_metrics of a model with a head on a split.

    The loss is that of training, against the uniform distribution over the correct labels of an image.
    """

    def __init__(
        self,
        settings: ClassificationSettings,
        model: Model,
        data: Data,
        split: EvalSplit,
        mesh: jax.sharding.Mesh,
    ) -> None:
        """Raises ConfigError for an unknown loss, or one that does not fit the classes."""
        self._split, self._layout = split, batch_sharding(mesh)
        self._sums = _make_sums(settings, model, data, mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"loss", "top1", "top5", "images", "non_finite"}."""
        batches = self._split.loader.eval_batches(self._split.split, self._layout)
        started = (self._sums(params[BACKBONE], batch) for batch in relabel(batches, self._split.table))
        return classification_metrics(functools.reduce(add_sums, map(jax.device_get, in_turn(started))))


@functools.lru_cache(maxsize=8)  # compiled once for all splits
def _make_sums(settings: ClassificationSettings, model: Model, data: Data, mesh: jax.sharding.Mesh) -> Any:
    """The compiled function (backbone, batch) -> Sums of the batch."""
    loss_per_example = make_loss_per_example(settings, model.num_classes)
    graphdef, _ = abstract_model(model)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(backbone: Any, batch: Batch) -> Sums:
        image = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        logits_BxY = build_model(graphdef, backbone)(image).logits
        assert logits_BxY is not None  # has_evaluators requires a head
        label_BxK = batch.targets[LABEL].reshape(len(batch.mask_B), -1)
        label_BxY = jax.nn.one_hot(label_BxK, model.num_classes).sum(axis=1)
        label_BxY /= jnp.maximum(label_BxY.sum(axis=-1, keepdims=True), 1.0)
        loss_B = loss_per_example(logits_BxY, label_BxY)
        return classification_sums(logits_BxY, label_BxK, batch.mask_B, loss_B)

    return sums


def _is_for(objective: ObjectiveSettings, model: Model) -> bool:
    return objective.name == "classification" and model.num_classes > 0


def _make(
    objective: ObjectiveSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
) -> dict[str, Evaluator]:
    return {
        name: ClassificationEvaluator(objective.classification, model, data, split, mesh)
        for name, split in splits.items()
    }


CLASSIFICATION = EvaluatorKind(_is_for, _make)
