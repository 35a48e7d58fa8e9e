"""k-NN accuracy of features on a split, with the training split as the bank: neighbours.py, over batches."""

import collections
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.config import Data, KnnSettings, Model, ObjectiveSettings
from vit_registers.data.batch import Batch, relabel
from vit_registers.data.loaders import EvalSplit
from vit_registers.data.prefetch import in_turn
from vit_registers.evaluation import features as features_lib
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.evaluation.classification import classification_sums
from vit_registers.evaluation.features import EditsOf, Features, block_features, compiled_features
from vit_registers.evaluation.neighbours import (
    MOST_NEIGHBOURS,
    Bank,
    make_bank,
    nearest_rows,
    unit_features,
    votes,
)
from vit_registers.objectives.base import BACKBONE
from vit_registers.training.sharding import batch_sharding, replicated

CLS = ""  # the features that rank checkpoints, whose metrics have no prefix
PATCH = "patch"  # the mean of the patch tokens
_NEIGHBORS = KnnSettings().neighbors


class KnnEvaluator:
    """The Evaluator of the weighted k-NN accuracy, of DINOv2's protocol, of each of several features.

    The bank has the images of data.train_split, processed by data.eval_ops, and is computed for each call.
    """

    def __init__(self, data: Data, split: EvalSplit, mesh: jax.sharding.Mesh, features: Features) -> None:
        """`features` is a pure function of the backbone and a batch; pass the same one to compile it once."""
        self._data, self._split, self._mesh = data, split, mesh
        self._layout = batch_sharding(mesh)
        self._features = compiled_features(features, mesh)
        self._count = knn_counter(mesh, split.loader.num_classes, _NEIGHBORS)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"top1_k10", ..., "patch/top1_k10", ..., "images", "non_finite"}.

        Images of which a feature is not finite are wrong by it.
        """
        backbone = params[BACKBONE]
        loader, split = self._split.loader, self._split.split
        own = loader.eval_batches(self._data.train_split, self._layout)
        banks, left_out = self._banks([*in_turn(self._features(backbone, batch) for batch in own)])
        tested = relabel(loader.eval_batches(split, self._layout), self._split.table)
        found = total_counts(self._count(banks, *self._features(backbone, batch)) for batch in tested)
        images, non_finite = found.get("images", 0), found.get("non_finite", 0)
        names = [metric_name(name, f"top1_k{k}") for name in banks for k in _NEIGHBORS]
        shares = {name: found.get(name, 0) / max(images, 1) for name in names}
        return {**shares, "images": images, "non_finite": non_finite + left_out}

    def _banks(self, batches: list[tuple[dict[str, jax.Array], jax.Array, jax.Array]]) -> Any:
        """({name: bank}, the largest number of rows left out of one); takes the features out of `batches`."""
        made = {}
        for name in [*batches[0][0]]:
            rows = ((features.pop(name), label_BxK[:, 0], mask_B) for features, label_BxK, mask_B in batches)
            made[name] = make_bank(rows, self._mesh)
        return {name: bank for name, (bank, _) in made.items()}, max(left for _, left in made.values())


def metric_name(feature: str, right: str) -> str:
    """The name of a metric such as "top1_k20" of a feature, CLS or PATCH."""
    return f"{feature}/{right}" if feature else right


@functools.lru_cache(maxsize=8)
def model_features(model: Model, data: Data, edits: EditsOf | None = None) -> Features:
    """The features of a model: cls, and the mean of the patches, both after the final norm.

    Models without cls have only the latter, instead of cls.
    """
    both = block_features(model, data, 1, edits)

    def features(backbone: Any, batch: Batch) -> dict[str, jax.Array]:
        found = both(backbone, batch)
        cls_BxD = found[features_lib.CLS][:, 0]
        return {CLS: cls_BxD, PATCH: found[features_lib.MEAN]} if model.use_cls else {CLS: cls_BxD}

    return features


@functools.lru_cache(maxsize=8)
def knn_counter(
    mesh: jax.sharding.Mesh, num_classes: int, neighbors: tuple[int, ...]
) -> Callable[..., dict[str, jax.Array]]:
    """A function (banks, features, label_BxK, mask_B) that counts the right answers, by feature and k.

    They are "<feature>/top1_k<k>", and "top5_k<k>" with more than five classes. Each label of an image is
    right. The softmax of the votes is over MOST_NEIGHBOURS, or the largest k if that is more.
    """

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def count(
        banks: Mapping[str, Bank], features: Mapping[str, jax.Array], label_BxK: jax.Array, mask_B: jax.Array
    ) -> dict[str, jax.Array]:
        found, is_finite_B = {}, jnp.ones_like(mask_B)
        for name, bank in banks.items():
            query_BxD = unit_features(features[name])
            own_B = jnp.isfinite(query_BxD).all(axis=-1)
            most = max(MOST_NEIGHBOURS, *neighbors)
            similarity_BxJ, found_BxJ = nearest_rows(bank, jnp.nan_to_num(query_BxD), most)
            each = votes(similarity_BxJ, found_BxJ, num_classes=num_classes, numbers=neighbors)
            for k, votes_BxY in zip(neighbors, each, strict=True):
                no_loss_B = jnp.zeros(len(votes_BxY))
                sums = classification_sums(votes_BxY, label_BxK, mask_B & own_B, no_loss_B)
                for top in [top for top in ("top1", "top5") if top in sums]:
                    found[metric_name(name, f"{top}_k{k}")] = sums[top][0]
            is_finite_B &= own_B
        return {**found, "images": mask_B.sum(), "non_finite": (mask_B & ~is_finite_B).sum()}

    return count


def total_counts(started: Iterable[Mapping[str, jax.Array]]) -> dict[str, int]:
    """The sums of the counts of all batches, whose programs the iterable starts."""
    total: collections.Counter[str] = collections.Counter()
    for counts in in_turn(started):
        total.update({name: int(count) for name, count in jax.device_get(counts).items()})
    return dict(total)


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
