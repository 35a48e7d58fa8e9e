"""Weighted k-nearest-neighbour classification of a split by frozen features: `--task=knn`.

DINOv2's protocol: the bank has the features of all images of the training split, prepared as test images are.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import KnnSettings, Tasks
from vit_registers.errors import DataError
from vit_registers.evaluation.features import BatchFeatures, empty_classes, run_features, training_features
from vit_registers.evaluation.images import ImageTask, TaskImages
from vit_registers.evaluation.knn import CLS, PATCH, knn_counter, metric_name, model_features, total_counts
from vit_registers.evaluation.neighbours import Bank, make_bank
from vit_registers.evaluation.task import FrozenModel, TaskResult, TaskTable
from vit_registers.training.sharding import batch_sharding, replicate

_FEATURES = {CLS: "cls", PATCH: "mean patch"}
_COLUMNS = ("data", "feature", "neighbors", "top1", "top5", "top1_std", "top5_std")


def measure_knn(
    frozen: FrozenModel,
    settings: Tasks,
    images: TaskImages,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """The accuracies top1_k10, top5_k10, ... of each number of neighbours, for cls and the mean patch.

    With tasks.knn.few_shot they are means over the draws of the bank, and the table has their standard
    deviations. An interrupted call begins again.
    """
    knn, train = settings.knn, images.train
    features = model_features(frozen.model, frozen.data, frozen.edits)
    trained = [*training_features(features, frozen.backbone, train, frozen.mesh, say=say)]
    label_N, count_Y = _labels(trained, frozen, images.num_classes)
    if not count_Y.sum():
        raise DataError(f"split '{train.split}' of '{train.loader.name}' has no image with a label")
    draws = range(settings.seed, settings.seed + (1 if knn.few_shot is None else knn.num_draws))
    chosen = [_chosen(label_N, knn.few_shot, seed) for seed in draws]
    values: dict[str, float | int | str] = {"classes": images.num_classes}
    values["bank"] = round(float(np.mean([one.sum() for one in chosen])))
    lines, left_out = [], 0
    tested = {
        name: [*run_features(features, frozen.backbone, split, frozen.mesh, say=say)]
        for name, split in images.tests.items()
    }
    found: dict[str, list[dict[str, int]]] = {name: [] for name in tested}
    for chosen_N in chosen:
        banks, left_out = _banks(trained, chosen_N, frozen)
        for name, rows in tested.items():
            found[name].append(_count(banks, rows, frozen, images.num_classes, knn.neighbors))
    for name, counts in found.items():
        more, table = _summary(counts, knn)
        values |= {f"{name}/{key}" if name else key: value for key, value in more.items()}
        lines += [(name or images.test_name, *row) for row in table]
    values["non_finite"] = int(values["non_finite"]) + left_out
    values["left_out"] = images.num_broken(frozen.mesh)
    notes = list(_notes(frozen, knn, count_Y, train.loader.class_names))
    return TaskResult(values, {"neighbors": TaskTable(_COLUMNS, lines)}, notes=notes)


def _labels(
    rows: list[BatchFeatures], frozen: FrozenModel, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(label_N of all rows, -1 for padding; the number of images of each class), on the host."""
    gather = jax.jit(lambda label_BxK, mask_B: jnp.where(mask_B, label_BxK[:, 0], -1))
    whole = replicate(frozen.mesh)
    label_N = np.concatenate([np.asarray(whole(gather(label, mask))) for _, label, mask in rows])
    return label_N, np.bincount(label_N[label_N >= 0], minlength=num_classes)


def _chosen(label_N: np.ndarray, few_shot: int | None, seed: int) -> np.ndarray:
    """Whether each row is in the bank: all with a label, or `few_shot` of each class, drawn from the seed."""
    if few_shot is None:
        return label_N >= 0
    chosen_N = np.zeros(len(label_N), bool)
    for label in np.unique(label_N[label_N >= 0]):
        rng = np.random.default_rng([seed, int(label)])
        chosen_N[rng.permutation(np.flatnonzero(label_N == label))[:few_shot]] = True
    return chosen_N


def _banks(
    rows: list[BatchFeatures], chosen_N: np.ndarray, frozen: FrozenModel
) -> tuple[dict[str, Bank], int]:
    """({feature: bank of the chosen rows}, the number of rows that are left out as they are not finite)."""
    layout = batch_sharding(frozen.mesh)
    size = len(chosen_N) // len(rows)
    masks = [
        jax.make_array_from_callback((size,), layout, lambda index, part=part: part[index])
        for part in np.split(chosen_N, len(rows))
    ]
    made = {
        name: make_bank(
            (
                (one[name], label_BxK[:, 0], mask)
                for (one, label_BxK, _), mask in zip(rows, masks, strict=True)
            ),
            frozen.mesh,
        )
        for name in rows[0][0]
    }
    return {name: bank for name, (bank, _) in made.items()}, max(left for _, left in made.values())


def _count(
    banks: Mapping[str, Bank],
    rows: list[BatchFeatures],
    frozen: FrozenModel,
    num_classes: int,
    neighbors: tuple[int, ...],
) -> dict[str, int]:
    counter = knn_counter(frozen.mesh, num_classes, neighbors)
    return total_counts(counter(banks, *row) for row in rows)


def _summary(
    counts: list[dict[str, int]], settings: KnnSettings
) -> tuple[dict[str, float | int | str], list[tuple[str | int | float | None, ...]]]:
    """(values, rows of the table without the name of the data) of the counts of each draw."""
    number, rows = max(counts[0]["images"], 1), []
    values: dict[str, float | int | str] = {}
    for feature in (CLS, PATCH):
        for k in settings.neighbors:
            names = [metric_name(feature, f"{top}_k{k}") for top in ("top1", "top5")]
            if names[0] not in counts[0]:  # a model without cls has one feature
                continue
            shares = [[one[name] / number for one in counts] if name in counts[0] else None for name in names]
            means = [None if share is None else float(np.mean(share)) for share in shares]
            spread = [
                None if share is None or len(share) < 2 else float(np.std(share, ddof=1)) for share in shares
            ]
            values |= {name: mean for name, mean in zip(names, means, strict=True) if mean is not None}
            rows.append((_FEATURES[feature], k, *means, *spread))
    return values | {name: counts[0][name] for name in ("images", "non_finite")}, rows


def _notes(
    frozen: FrozenModel, settings: KnnSettings, count_Y: np.ndarray, names: tuple[str, ...]
) -> Iterator[str]:
    if not frozen.model.use_cls:
        yield "the model has no cls token: its features are the mean of the patches"
    yield from empty_classes(count_Y, names)
    least = int(count_Y[count_Y > 0].min())
    if settings.few_shot is not None and least < settings.few_shot:
        yield f"a class has {least} training images, fewer than tasks.knn.few_shot={settings.few_shot}"


KNN_TASK = ImageTask(measure_knn)
