"""Linear classifiers of frozen features: `--task=linear`, by DINOv2's protocol.

All classifiers of a grid of learning rates and inputs are trained at once, on one pass of the backbone. The
best one is chosen on a held-out part of the training split, which is drawn from the seed and not learned
from, or on the test images, as released.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_registers.config import Config, Data, Run, Tasks
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.data.order import Order
from vit_registers.data.prefetch import ahead
from vit_registers.data.sources.parts import held_out, held_out_records, kept, kept_records
from vit_registers.evaluation.dense.saved import SavedHead
from vit_registers.evaluation.features import (
    CLS,
    MEAN,
    Features,
    block_features,
    compiled_features,
    empty_classes,
    run_features,
    training_features,
)
from vit_registers.evaluation.images import ImageTask, TaskImages
from vit_registers.evaluation.linear.host_features import (
    FeatureBatch,
    evaluation_batches,
    feature_batches,
    host_features,
    training_batches,
)
from vit_registers.evaluation.linear.plan import Plan, make_plan
from vit_registers.evaluation.linear.training import GridScores, LinearGrid, score_grid, train_grid
from vit_registers.evaluation.task import FrozenModel, TaskResult, TaskTable
from vit_registers.models.blocks import dims
from vit_registers.training.sharding import batch_sharding


class Sources(NamedTuple):
    """What a grid is trained on and chosen on."""

    training: Callable[[int], Iterator[FeatureBatch]]  # endless batches, from a step on
    held_out: Callable[[], Iterator[FeatureBatch]]  # not used if the choice is made on test images


class SourceInputs(NamedTuple):
    """What the sources are made of."""

    frozen: FrozenModel
    settings: Tasks
    images: TaskImages
    plan: Plan
    features: Features
    say: Callable[[str], None]

    def config(self, data: Data) -> Config:
        """The settings of a loader of `data`."""
        return Config(model=self.frozen.model, data=data, run=Run(seed=self.settings.seed))


def measure_linear(
    frozen: FrozenModel,
    settings: Tasks,
    images: TaskImages,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """top1, top5 and loss of the best classifier of the grid, and a table of all of them.

    An interrupted call continues from the classifiers in `folder`.
    """
    shards = batch_sharding(frozen.mesh).num_devices
    number = images.train.loader.num_examples(images.train.split)
    linear, model = settings.linear, frozen.model
    plan = make_plan(
        linear, model, images.train_data, num_images=number, num_shards=shards, seed=settings.seed
    )
    grid = LinearGrid(plan, dims(model).width, model.use_cls, images.num_classes, frozen.mesh)
    features = block_features(model, frozen.data, max(plan.num_blocks), frozen.edits)
    make = cached_sources if plan.is_cached else streamed_sources
    sources = make(SourceInputs(frozen, settings, images, plan, features, say))
    saved = None if folder is None else SavedHead(folder / "classifiers.npz", repr((plan, number)))
    state = train_grid(grid, sources.training, seed=settings.seed, saved=saved, say=say)
    scores = {}
    for name, split in images.tests.items():
        tested = feature_batches(run_features(features, frozen.backbone, split, frozen.mesh, say=say))
        scores[name] = score_grid(grid, state.heads, tested, _some_classes(split, images.num_classes))
    chosen_on = scores[""]
    if plan.num_held_out:
        chosen_on = score_grid(grid, state.heads, sources.held_out())
    best = _best(chosen_on)
    values = _values(plan, settings, scores, chosen_on, best, num_heads=grid.num_heads)
    values["left_out"] = images.num_broken(frozen.mesh)
    values["not_learned"] = int(state.num_left_out)
    what = f"image among those of the {plan.num_steps} steps"
    empty = empty_classes(np.asarray(state.learned_Y), images.train.loader.class_names, what=what)
    return TaskResult(
        values,
        {"classifiers": _table(plan, settings, chosen_on if plan.num_held_out else None, scores[""])},
        notes=[*_notes(frozen, settings, plan), *empty],
    )


def cached_sources(given: SourceInputs) -> Sources:
    """The features of all training images, computed once, with the images that plan.train_ops make."""
    frozen, settings, images, plan, features, say = given
    data = dataclasses.replace(images.train_data, eval_ops=plan.train_ops)
    loader = images.train.loader
    if plan.train_ops != images.train_data.eval_ops:
        loader = open_data(given.config(data))
    split = EvalSplit(loader, images.train.split)
    made = training_features(features, frozen.backbone, split, frozen.mesh, say=say)
    rows = host_features(feature_batches(made), frozen.mesh)
    # Rows beyond the images of the split are padding.
    number, share = loader.num_examples(split.split), settings.linear.held_out
    keep = kept_records(number, share, settings.seed) if plan.num_held_out else np.arange(number)
    learned, order = rows.rows(keep), _order(plan, settings, len(keep))

    def held() -> Iterator[FeatureBatch]:
        index = held_out_records(number, share, settings.seed)
        return evaluation_batches(rows.rows(index), data.eval_batch_size, frozen.mesh)

    return Sources(lambda start: training_batches(learned, order, start, frozen.mesh), held)


def streamed_sources(given: SourceInputs) -> Sources:
    """Features of images that are made for each step: one pass of the backbone trains all classifiers."""
    frozen, settings, images, plan, features, say = given
    data, share = images.train_data, settings.linear.held_out
    if plan.num_held_out:
        data = dataclasses.replace(
            data,
            train_split=kept(data.train_split, share, settings.seed),
            eval_split=held_out(data.train_split, share, settings.seed),
        )
    changed = {"train_ops": plan.train_ops, "batch_size": plan.batch_size, "repeats": 1, "drop_last": False}
    loader = open_data(given.config(dataclasses.replace(data, **changed)))
    compute = compiled_features(features, frozen.mesh)

    def training(start: int) -> Iterator[FeatureBatch]:
        batches = loader.train_batches(start, batch_sharding(frozen.mesh))
        for batch in ahead(batches, plan.num_steps - start):
            found, label_BxK, mask_B = compute(frozen.backbone, batch)
            yield FeatureBatch(found[CLS], found[MEAN], label_BxK, mask_B)

    def held() -> Iterator[FeatureBatch]:
        split = EvalSplit(loader, data.eval_split)
        return feature_batches(run_features(features, frozen.backbone, split, frozen.mesh, say=say))

    return Sources(training, held)


def _order(plan: Plan, settings: Tasks, number: int) -> Order:
    """The order of training examples of the loaders."""
    return Order(seed=settings.seed, num_examples=number, batch_size=plan.batch_size)


def _some_classes(split: EvalSplit, num_classes: int) -> list[int] | None:
    """The classes of a split that has only some of those of training."""
    table = split.table
    return None if table is None or len(set(table)) == num_classes else sorted(int(i) for i in set(table))


def _best(scores: dict[str, GridScores]) -> tuple[str, int]:
    """(input, index of the rate) of the highest top-1; of equals that with the lowest loss."""

    def rank(place: tuple[str, int]) -> tuple[float, float]:
        name, r = place
        loss = float(scores[name].loss_R[r])
        return float(scores[name].top1_R[r]), -loss if np.isfinite(loss) else -np.inf

    return max(((name, r) for name in scores for r in range(len(scores[name].top1_R))), key=rank)


def _values(
    plan: Plan,
    settings: Tasks,
    scores: dict[str, dict[str, GridScores]],
    chosen_on: dict[str, GridScores],
    best: tuple[str, int],
    *,
    num_heads: int,
) -> dict[str, float | int | str]:
    name, r = best
    values: dict[str, float | int | str] = {}
    for data, found in scores.items():
        own, start = found[name], f"{data}/" if data else ""
        values |= {f"{start}top1": float(own.top1_R[r])}
        values |= {} if own.top5_R is None else {f"{start}top5": float(own.top5_R[r])}
        values |= {f"{start}loss": float(own.loss_R[r]), f"{start}images": own.images}
        values |= {f"{start}non_finite": int(own.non_finite_R[r])}
    if plan.num_held_out:
        values["held_out_top1"] = float(chosen_on[name].top1_R[r])
    return values | {
        "chosen_on": settings.linear.chosen_on,
        "input": name,
        "learning_rate": settings.linear.learning_rates[r],
        "classifiers": num_heads,
        "num_steps": plan.num_steps,
        "batch_size": plan.batch_size,
        "train_ops": plan.train_ops,
        "held_out": plan.num_held_out,
    }


def _table(
    plan: Plan, settings: Tasks, held: dict[str, GridScores] | None, test: dict[str, GridScores]
) -> TaskTable:
    rows = []
    for name, own in test.items():
        for r, base in enumerate(settings.linear.learning_rates):
            chosen = None if held is None else float(held[name].top1_R[r])
            top5 = None if own.top5_R is None else float(own.top5_R[r])
            loss = float(own.loss_R[r])
            rows.append((name, base, plan.learning_rates[r], chosen, float(own.top1_R[r]), top5, loss))
    columns = ("input", "learning_rate", "peak", "held_out_top1", "test_top1", "test_top5", "test_loss")
    return TaskTable(columns, rows)


def _notes(frozen: FrozenModel, settings: Tasks, plan: Plan) -> Iterator[str]:
    if settings.linear.chosen_on == "test":
        yield "the best classifier was chosen on the test images, as released, which favours the result"
    else:
        yield (
            f"the best classifier was chosen on {plan.num_held_out} images of the training split, drawn with "
            f"the seed {settings.seed}, that none was trained on"
        )
    missing = sorted(set(settings.linear.num_blocks) - set(plan.num_blocks))
    if missing:
        depth = dims(frozen.model).depth
        shown = ", ".join(map(str, missing))
        yield f"the model has {depth} blocks: there are no classifiers of the last {shown}"
    if not frozen.model.use_cls:
        yield "the model has no cls token: the mean of the patches of each block takes its place"
    yield (
        "the features of the training images were computed once"
        if plan.is_cached
        else "each step has newly drawn training images"
    )


LINEAR = ImageTask(measure_linear)
