"""k-NN accuracy of cls on a split, with the training split as the bank: neighbours.py, over batches."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.config import Data, Model, ObjectiveSettings
from vit_registers.data.batch import IMAGE, LABEL, Batch, normalize, relabel
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.evaluation.neighbours import (
    MOST_NEIGHBOURS,
    Bank,
    make_bank,
    nearest_rows,
    unit_features,
    votes,
)
from vit_registers.models.params import abstract_model, build_model
from vit_registers.objectives.base import BACKBONE
from vit_registers.training.sharding import batch_sharding, replicated

NEIGHBOURS = (10, 20, 100, 200)  # the numbers k that vote, as DINOv2 reports them


class KnnEvaluator:
    """The Evaluator of the weighted k-NN accuracy of cls, of DINOv2's protocol.

    The bank has the images of data.train_split, processed by data.eval_ops, and is computed for each call.
    """

    def __init__(self, model: Model, data: Data, split: EvalSplit, mesh: jax.sharding.Mesh) -> None:
        self._data, self._split, self._mesh = data, split, mesh
        self._layout = batch_sharding(mesh)
        self._features, self._count = _compiled(model, data, mesh, split.loader.num_classes)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"top1_k10", ..., "images", "non_finite"}; images whose features are not finite are wrong."""
        backbone = params[BACKBONE]
        loader, split = self._split.loader, self._split.split
        own = loader.eval_batches(self._data.train_split, self._layout)
        bank, left_out = make_bank((self._features(backbone, batch) for batch in own), self._mesh)
        totals = None
        for batch in relabel(loader.eval_batches(split, self._layout), self._split.table):
            more = self._count(bank, *self._features(backbone, batch))
            totals = more if totals is None else jax.tree.map(jnp.add, totals, more)
        found = {name: int(value) for name, value in jax.device_get(totals or {}).items()}
        images, non_finite = found.pop("images", 0), found.pop("non_finite", 0)
        shares = {name: value / max(images, 1) for name, value in found.items()}
        return {**shares, "images": images, "non_finite": non_finite + left_out}


@functools.lru_cache(maxsize=8)
def _compiled(model: Model, data: Data, mesh: jax.sharding.Mesh, num_classes: int) -> tuple[Any, Any]:
    """(features of a batch, right answers of a batch), compiled."""
    graphdef, _ = abstract_model(model)

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def features(backbone: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        image = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        cls_BxD = build_model(graphdef, backbone)(image).cls
        assert cls_BxD is not None  # the objective requires cls
        label_B = batch.targets[LABEL].reshape(len(batch.mask_B), -1)[:, 0]
        return cls_BxD, label_B, batch.mask_B & (label_B >= 0)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def count(bank: Bank, cls_BxD: jax.Array, label_B: jax.Array, mask_B: jax.Array) -> dict[str, jax.Array]:
        query_BxD = unit_features(cls_BxD)
        is_finite_B = jnp.isfinite(query_BxD).all(axis=-1)
        similarity_BxJ, found_BxJ = nearest_rows(bank, jnp.nan_to_num(query_BxD), MOST_NEIGHBOURS)
        each = votes(similarity_BxJ, found_BxJ, num_classes=num_classes, numbers=NEIGHBOURS)
        right = {
            f"top1_k{k}": (mask_B & is_finite_B & (votes_BxY.argmax(axis=-1) == label_B)).sum()
            for k, votes_BxY in zip(NEIGHBOURS, each, strict=True)
        }
        return {**right, "images": mask_B.sum(), "non_finite": (mask_B & ~is_finite_B).sum()}

    return features, count


def _is_for(objective: ObjectiveSettings, model: Model) -> bool:
    return objective.name == "self_distillation"


def _make(
    objective: ObjectiveSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
) -> dict[str, Evaluator]:
    names = ["knn", *(f"knn {name}" for name in [*splits][1:])]
    return {
        name: KnnEvaluator(model, data, split, mesh)
        for name, split in zip(names, splits.values(), strict=True)
    }


KNN = EvaluatorKind(_is_for, _make)
