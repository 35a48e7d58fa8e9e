"""Depth from one image by a linear head on frozen features, by DINOv2's protocol: `--task=depth`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Tasks
from vit_registers.config.tasks import head_settings
from vit_registers.evaluation.dense.examples import Examples
from vit_registers.evaluation.dense.pictures import shown_examples
from vit_registers.evaluation.dense.task import DenseTask, Row, Scores, measure_rows, table_rows
from vit_registers.evaluation.dense.training import Features, HeadTrainer, Recipe
from vit_registers.evaluation.depth.errors import summarize
from vit_registers.evaluation.depth.head import init_depth_head, predict_depth
from vit_registers.evaluation.depth.losses import gradient_loss, sig_loss
from vit_registers.evaluation.depth.measure import Measured, add_measured, make_predictor, measure
from vit_registers.evaluation.depth.optimizer import depth_optimizer
from vit_registers.evaluation.depth.protocol import (
    Problem,
    depth_model_features,
    open_problem,
    training_examples,
)
from vit_registers.evaluation.depth.result import depth_result
from vit_registers.evaluation.pace import Pace
from vit_registers.evaluation.task import FrozenModel, Splits, TaskResult
from vit_registers.runtime.exchange import gather, own_share
from vit_registers.runtime.mesh import own_mesh
from vit_registers.training.sharding import on_own_devices

_METRICS = ("rmse", "abs_rel", "a1")  # while training


class _Program(NamedTuple):
    """What is compiled for heads on one kind of features."""

    trainer: HeadTrainer
    predict: Callable[[Any, Any, jax.Array], jax.Array]  # of measure.py


def depth(
    frozen: FrozenModel,
    settings: Tasks,
    splits: Splits,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """The errors of a linear head, with their spread over images, and those of two baselines, as a Task.

    The baselines are the same head on the position of each patch alone, and on the same architecture with
    new parameters. Heads that an interrupted call has trained, or begun, are in `folder`.
    """
    problem = open_problem(frozen, settings, splits)
    examples = training_examples(problem)
    with jax.set_mesh(frozen.mesh):
        rows = table_rows(
            frozen,
            functools.partial(depth_model_features, problem),
            seed=problem.seed,
            grid_of=lambda own: _shape(own, frozen.backbone, examples)[:2],
        )
        measured = measure_rows(
            rows,
            lambda features, backbone: _program(problem, features, backbone, examples),
            lambda row, program: _measure(problem, row, program, examples, folder, say),
        )
    return depth_result(problem, measured)


def _open_scores(frozen: FrozenModel, settings: Tasks, splits: Splits) -> Scores:
    problem = open_problem(frozen, settings, splits)
    examples, features = training_examples(problem), depth_model_features(problem, frozen.edits)
    program = _program(problem, features, frozen.backbone, examples)

    def scores(backbone: Any) -> dict[str, float]:
        row = Row(frozen.name, features, backbone)
        with jax.set_mesh(frozen.mesh):
            found = _measure(problem, row, program, examples, None, lambda line: None)
        summary = summarize(found.errors, where=f"test data {problem.test}")
        own = {name: summary.means[name] for name in _METRICS}
        return {**own, "images": summary.num_images, "non_finite": found.num_non_finite}

    return scores


DEPTH = DenseTask(depth, _open_scores, _METRICS)


def _shape(features: Features, backbone: Any, examples: Examples) -> tuple[int, int, int]:
    """(rows, columns, channels) of the features of a training image."""
    image_HxWxC = examples.make(0, np.random.default_rng(0)).image_HxWxC
    image = jax.ShapeDtypeStruct((1, *image_HxWxC.shape), jnp.uint8)
    size = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(features, backbone, image, size).shape[1:]


def _program(problem: Problem, features: Features, backbone: Any, examples: Examples) -> _Program:
    settings, (*_, num_channels) = problem.settings, _shape(features, backbone, examples)
    num_bins, num_steps = settings.num_bins, settings.num_steps
    assert num_bins is not None and num_steps is not None
    recipe = Recipe(
        lambda key: (init_depth_head(key, num_channels, num_bins), ()),
        functools.partial(_loss, problem),
        depth_optimizer(settings, num_steps),
        num_steps,
        settings.batch_size,
        problem.seed,
    )
    trainer = HeadTrainer(recipe, features, problem.frozen.mesh, setting="tasks.depth")
    return _Program(trainer, make_predictor(problem, features))


def _measure(
    problem: Problem,
    row: Row,
    program: _Program,
    examples: Examples,
    folder: Path | None,
    say: Callable[[str], None],
) -> Measured:
    """What a head predicts of the test split. The head is trained first."""
    what, train, frozen = f"depth of {row.name}", problem.train, problem.frozen
    about = {
        "settings": head_settings(problem.settings),
        "seed": problem.seed,
        "data": [train.source.name, train.split, train.number],
        "model": dataclasses.asdict(frozen.model),
        "images": [frozen.data.mean, frozen.data.std],
    }
    saved = row.saved(folder, "depth", about)
    head, _ = program.trainer.train(row.backbone, examples, what=what, saved=saved, say=say)
    own, number = own_mesh(frozen.mesh), problem.test.number
    arrays, numbers = on_own_devices((row.backbone, head), frozen.mesh, own), own_share(number, frozen.mesh)

    def measure_share() -> Measured:
        return measure(
            problem,
            lambda image_BxHxWxC: program.predict(*arrays, image_BxHxWxC),
            numbers,
            kept=shown_examples(number),
            pace=Pace(f"{what}, test", len(numbers), say, unit="images"),
        )

    with jax.set_mesh(own):
        return add_measured(gather(measure_share, frozen.mesh))


def _loss(
    problem: Problem,
    head: Any,
    statistics: Any,
    feature_BxHxWxC: jax.Array,
    label_BxHxW: jax.Array,
    key: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, Any]:
    """(loss of the prediction at the size of the labels, statistics, of which the head has none)."""
    settings, (low, high) = problem.settings, problem.range_m
    height, width = label_BxHxW.shape[1:]
    predicted_BxHxW = predict_depth(head, feature_BxHxWxC, (height, width), low=low, high=high)
    loss = sig_loss(predicted_BxHxW, label_BxHxW, is_warm_up=step < (settings.mean_steps or 0))
    if settings.gradient_weight:
        loss += settings.gradient_weight * gradient_loss(predicted_BxHxW, label_BxHxW)
    return loss, statistics
