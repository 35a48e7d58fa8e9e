"""k-NN accuracy of features on a split, with the training split as the bank: neighbours.py, over batches."""

import functools
from collections.abc import Callable, Mapping
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
CLS = ""  # the features that rank checkpoints, whose metrics have no prefix
PATCH = "patch"  # the mean of the patch tokens
_RIGHT = [f"top1_k{k}" for k in NEIGHBOURS]

# Features of a batch by name, BxD each: (parameters of the backbone, batch) -> {name: features}
Features = Callable[[Any, Batch], Mapping[str, jax.Array]]


class KnnEvaluator:
    """The Evaluator of the weighted k-NN accuracy, of DINOv2's protocol, of each of several features.

    The bank has the images of data.train_split, processed by data.eval_ops, and is computed for each call.
    """

    def __init__(self, data: Data, split: EvalSplit, mesh: jax.sharding.Mesh, features: Features) -> None:
        """`features` is a pure function of the backbone and a batch; pass the same one to compile it once."""
        self._data, self._split, self._mesh = data, split, mesh
        self._layout = batch_sharding(mesh)
        self._features = _compiled(features, mesh)
        self._count = _counter(mesh, split.loader.num_classes)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"top1_k10", ..., "patch/top1_k10", ..., "images", "non_finite"}.

        Images of which a feature is not finite are wrong by it.
        """
        backbone = params[BACKBONE]
        loader, split = self._split.loader, self._split.split
        own = loader.eval_batches(self._data.train_split, self._layout)
        banks, left_out = self._banks([self._features(backbone, batch) for batch in own])
        totals = None
        for batch in relabel(loader.eval_batches(split, self._layout), self._split.table):
            more = self._count(banks, *self._features(backbone, batch))
            totals = more if totals is None else jax.tree.map(jnp.add, totals, more)
        found = {name: int(value) for name, value in jax.device_get(totals or {}).items()}
        images, non_finite = found.get("images", 0), found.get("non_finite", 0)
        names = [metric_name(name, right) for name in banks for right in _RIGHT]
        shares = {name: found.get(name, 0) / max(images, 1) for name in names}
        return {**shares, "images": images, "non_finite": non_finite + left_out}

    def _banks(self, batches: list[tuple[dict[str, jax.Array], jax.Array, jax.Array]]) -> Any:
        """({name: bank}, the largest number of rows left out of one); takes the features out of `batches`."""
        made = {}
        for name in [*batches[0][0]]:
            rows = ((features.pop(name), label_B, mask_B) for features, label_B, mask_B in batches)
            made[name] = make_bank(rows, self._mesh)
        return {name: bank for name, (bank, _) in made.items()}, max(left for _, left in made.values())


def metric_name(feature: str, right: str) -> str:
    """The name of a metric such as "top1_k20" of a feature, CLS or PATCH."""
    return f"{feature}/{right}" if feature else right


@functools.lru_cache(maxsize=8)
def model_features(model: Model, data: Data) -> Features:
    """The features of a model: cls, and the mean of the patches, both after the final norm."""
    graphdef, _ = abstract_model(model)

    def features(backbone: Any, batch: Batch) -> dict[str, jax.Array]:
        image = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
        out = build_model(graphdef, backbone)(image)
        assert out.cls is not None  # the objective requires cls
        return {CLS: out.cls, PATCH: out.patches.astype(jnp.float32).mean(axis=1)}

    return features


@functools.lru_cache(maxsize=8)
def _compiled(features: Features, mesh: jax.sharding.Mesh) -> Callable[..., Any]:
    """A function of the backbone and a batch: ({name: features}, labels, mask of those that count)."""

    @functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
    def compute(backbone: Any, batch: Batch) -> tuple[Mapping[str, jax.Array], jax.Array, jax.Array]:
        label_B = batch.targets[LABEL].reshape(len(batch.mask_B), -1)[:, 0]
        return features(backbone, batch), label_B, batch.mask_B & (label_B >= 0)

    return compute


@functools.lru_cache(maxsize=8)
def _counter(mesh: jax.sharding.Mesh, num_classes: int) -> Callable[..., dict[str, jax.Array]]:
    """A function that counts the right answers of a batch, by feature and k."""

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def count(
        banks: Mapping[str, Bank], features: Mapping[str, jax.Array], label_B: jax.Array, mask_B: jax.Array
    ) -> dict[str, jax.Array]:
        found, is_finite_B = {}, jnp.ones_like(mask_B)
        for name, bank in banks.items():
            query_BxD = unit_features(features[name])
            own_B = jnp.isfinite(query_BxD).all(axis=-1)
            similarity_BxJ, found_BxJ = nearest_rows(bank, jnp.nan_to_num(query_BxD), MOST_NEIGHBOURS)
            each = votes(similarity_BxJ, found_BxJ, num_classes=num_classes, numbers=NEIGHBOURS)
            for right, votes_BxY in zip(_RIGHT, each, strict=True):
                is_right_B = mask_B & own_B & (votes_BxY.argmax(axis=-1) == label_B)
                found[metric_name(name, right)] = is_right_B.sum()
            is_finite_B &= own_B
        return {**found, "images": mask_B.sum(), "non_finite": (mask_B & ~is_finite_B).sum()}

    return count


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
        name: KnnEvaluator(data, split, mesh, model_features(model, data))
        for name, split in zip(names, splits.values(), strict=True)
    }


KNN = EvaluatorKind(_is_for, _make)
