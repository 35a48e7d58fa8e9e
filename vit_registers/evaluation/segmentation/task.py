"""Semantic segmentation by a linear head on frozen patches, by DINOv2's protocol."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import SegmentationSettings, Tasks
from vit_registers.config.tasks import head_settings
from vit_registers.data.sources.dense import CLASSES, DenseSource
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.dense.examples import DenseExample, Examples
from vit_registers.evaluation.dense.features import block_tokens, network_input
from vit_registers.evaluation.dense.pictures import shown_examples
from vit_registers.evaluation.dense.task import DenseTask, Row, measure_rows, table_rows
from vit_registers.evaluation.dense.task import Scores as ScoresOf
from vit_registers.evaluation.dense.training import Features, HeadTrainer, Recipe
from vit_registers.evaluation.features import EditsOf
from vit_registers.evaluation.segmentation.crops import training_example
from vit_registers.evaluation.segmentation.head import (
    SegmentationHead,
    Statistics,
    enlarge,
    init_segmentation_head,
    pixel_cross_entropy,
    segmentation_logits,
)
from vit_registers.evaluation.segmentation.inference import (
    Counted,
    add_counted,
    count_split,
    windows_at_once,
)
from vit_registers.evaluation.segmentation.protocol import Sizes, resolved, segmentation_optimizer
from vit_registers.evaluation.segmentation.result import picture, segmentation_result
from vit_registers.evaluation.segmentation.scores import Scores, scores
from vit_registers.evaluation.task import FrozenModel, Splits, TaskResult
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model, build_model
from vit_registers.runtime.exchange import gather, own_share
from vit_registers.runtime.mesh import own_mesh
from vit_registers.training.sharding import batch_sharding, on_own_devices, replicated


class _Problem(NamedTuple):
    """What all rows of the table have in common."""

    frozen: FrozenModel
    settings: SegmentationSettings
    seed: int
    sizes: Sizes
    train: tuple[DenseSource, str]
    test: tuple[DenseSource, str]


def segmentation(
    frozen: FrozenModel,
    settings: Tasks,
    splits: Splits,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """mIoU and accuracies of a linear head with batch norm, with those of two baselines, as a Task.

    The baselines are the same head on the position of each patch alone, and on the same architecture with
    new parameters.
    """
    problem = _open(frozen, settings, splits)
    shown = shown_examples(problem.test[0].num_examples(problem.test[1]))
    with jax.set_mesh(frozen.mesh):
        rows = table_rows(frozen, functools.partial(_features, problem), seed=problem.seed)
        measured = measure_rows(
            rows,
            functools.partial(_program, problem),
            lambda row, program: _measure(
                problem, row, program, folder, say, shown if row is rows[0] else ()
            ),
        )
    own = measured[frozen.name]
    return segmentation_result(
        {name: one.counted for name, one in measured.items()},
        labelled_Y=own.labelled_Y,
        settings=problem.settings,
        train=problem.train,
        test=problem.test,
        picture_HxWx3=picture(problem.test, own.counted.predictions, frozen.model.channels),
    )


def _open_scores(frozen: FrozenModel, settings: Tasks, splits: Splits) -> ScoresOf:
    problem = _open(frozen, settings, splits)
    features = _features(problem, frozen.edits)
    program = _program(problem, features, frozen.backbone)
    number = problem.test[0].num_examples(problem.test[1])

    def scores_of(backbone: Any) -> dict[str, float]:
        row = Row(frozen.name, features, backbone)
        with jax.set_mesh(frozen.mesh):
            found = _measure(problem, row, program, None, lambda line: None, ()).counted
        own = scores(found.count_YxY)._asdict()
        return {**own, "images": number, "non_finite": found.num_non_finite}

    return scores_of


SEGMENTATION = DenseTask(segmentation, _open_scores, Scores._fields)


def _open(frozen: FrozenModel, settings: Tasks, splits: Splits) -> _Problem:
    """The data sets and the settings. Raises ConfigError or DataError for what does not fit."""
    if frozen.model.channels not in (1, 3):
        raise ConfigError(
            f"{frozen.name}: model.channels={frozen.model.channels}, and segmentation requires 1 or 3"
        )
    (train_name, train_split), (test_name, test_split) = splits.train, splits.test
    test = open_dense(test_name, CLASSES)
    train = test if train_name == test_name else open_dense(train_name, CLASSES)
    if train.class_names != test.class_names:
        raise ConfigError(
            f"{train.name} has other classes than {test.name}, {len(train.class_names)} and "
            f"{len(test.class_names)}: train and test on data with the same classes"
        )
    test.num_examples(test_split)  # to fail before anything is trained
    try:
        train.num_examples(train_split)
    except DataError as error:
        raise DataError(f"{error}; --train_data=NAME:SPLIT says what to train on") from None
    own, sizes = resolved(settings.segmentation, train, frozen.model, frozen.data)
    return _Problem(frozen, own, settings.seed, sizes, (train, train_split), (test, test_split))


def _features(problem: _Problem, edits: EditsOf | None) -> Features:
    """The normed patches of the last blocks, side by side: a function of the backbone and images."""
    model, data = problem.frozen.model, problem.frozen.data
    graphdef, depth = abstract_model(model)[0], dims(model).depth
    blocks = range(depth - problem.settings.num_blocks, depth)

    def features(backbone: Any, image_BxHxWxC: jax.Array, size_Bx2: jax.Array) -> jax.Array:
        image_BxHxWxC = network_input(image_BxHxWxC, size_Bx2, data, patch_size=model.patch_size)
        network = build_model(graphdef, backbone)
        tokens = block_tokens(network, image_BxHxWxC, blocks=blocks, is_normed=True, edits=edits)
        return jnp.concatenate([one.patch_BxHxWxD for one in tokens], axis=-1)

    return features


class _State(NamedTuple):
    """What a head carries besides its parameters."""

    statistics: Statistics
    labelled_Y: jax.Array  # whether a pixel of the class was trained on


class _Measured(NamedTuple):
    counted: Counted
    labelled_Y: np.ndarray


class _Program(NamedTuple):
    """What heads on the same kind of features share, so that it is compiled once."""

    trainer: HeadTrainer
    # (backbone, head, state, window_BxHxWxC) -> logit_BxHxWxY of the size of the windows, on the devices of
    # this process
    logits: Callable[[Any, Any, Any, Any], jax.Array]


def _program(problem: _Problem, features: Features, backbone: Any) -> _Program:
    """The trainer and the logits of heads on `features`, which `backbone` has the shapes for."""
    frozen, settings, crop = problem.frozen, problem.settings, problem.sizes.crop
    assert settings.num_steps is not None
    shape = jax.ShapeDtypeStruct((settings.batch_size, crop, crop, frozen.model.channels), jnp.uint8)
    size = jax.ShapeDtypeStruct((settings.batch_size, 2), jnp.int32)
    num_channels = jax.eval_shape(features, backbone, shape, size).shape[-1]
    num_classes = len(problem.train[0].class_names)
    recipe = Recipe(
        functools.partial(_init, num_channels=num_channels, num_classes=num_classes),
        functools.partial(_loss, divisor=settings.divisor),
        segmentation_optimizer(settings, settings.num_steps),
        settings.num_steps,
        settings.batch_size,
        problem.seed,
    )

    @functools.partial(jax.jit, out_shardings=replicated(own_mesh(frozen.mesh)))
    def logits(backbone: Any, head: Any, state: _State, window_BxHxWxC: jax.Array) -> jax.Array:
        size_Bx2 = jnp.full((len(window_BxHxWxC), 2), crop, jnp.int32)
        feature_BxHxWxC = features(backbone, window_BxHxWxC, size_Bx2)
        logit_BxHxWxY, _ = segmentation_logits(head, state.statistics, feature_BxHxWxC, is_training=False)
        return enlarge(logit_BxHxWxY, (crop, crop))

    return _Program(HeadTrainer(recipe, features, frozen.mesh, setting="tasks.segmentation"), logits)


def _examples(problem: _Problem) -> Examples:
    """The training crops."""
    (source, split), settings, sizes = problem.train, problem.settings, problem.sizes
    assert settings.augment is not None
    is_augmented, channels = settings.augment, problem.frozen.model.channels

    def make(record: int, rng: np.random.Generator) -> DenseExample:
        pair = source.load(split, record, channels)
        return training_example(
            pair, rng, short_side=sizes.short_side, crop=sizes.crop, is_augmented=is_augmented
        )

    is_one_crop = (
        source.image_size is not None
        and sizes.crop >= sizes.short_side
        and (source.image_size[0] == source.image_size[1])
    )
    return Examples(source.num_examples(split), make, is_augmented or not is_one_crop)


def _measure(
    problem: _Problem,
    row: Row,
    program: _Program,
    folder: Path | None,
    say: Callable[[str], None],
    kept: Sequence[int],
) -> _Measured:
    """What a head predicts of the test split, with the images `kept`. The head is trained first."""
    what, frozen = f"head of {row.name}", problem.frozen
    source, split = problem.train
    about = {
        "settings": head_settings(problem.settings),
        "seed": problem.seed,
        "data": [source.name, split, source.num_examples(split), source.class_names],
        "model": dataclasses.asdict(frozen.model),
        "images": [frozen.data.mean, frozen.data.std],
    }
    saved = row.saved(folder, "segmentation", about)
    head, state = program.trainer.train(row.backbone, _examples(problem), what=what, saved=saved, say=say)
    source, split = problem.test
    own = own_mesh(frozen.mesh)
    layout, arrays = batch_sharding(own), on_own_devices((row.backbone, head, state), frozen.mesh, own)
    numbers = own_share(source.num_examples(split), frozen.mesh)

    def count() -> Counted:
        return count_split(
            lambda windows: program.logits(*arrays, jax.device_put(windows, layout)),
            source,
            split,
            numbers,
            sizes=problem.sizes,
            channels=frozen.model.channels,
            batch=windows_at_once(len(source.class_names), problem.sizes.crop, layout.num_devices),
            kept=kept,
            say=say,
            what=what,
        )

    with jax.set_mesh(own):
        counted = add_counted(gather(count, frozen.mesh))
    return _Measured(counted, np.asarray(state.labelled_Y))


def _init(key: jax.Array, *, num_channels: int, num_classes: int) -> tuple[SegmentationHead, _State]:
    head, statistics = init_segmentation_head(key, num_channels, num_classes)
    return head, _State(statistics, jnp.zeros(num_classes, bool))


def _loss(
    head: Any,
    state: _State,
    feature_BxHxWxC: jax.Array,
    label_BxHxW: jax.Array,
    key: jax.Array,
    step: jax.Array,
    *,
    divisor: str,
) -> tuple[jax.Array, _State]:
    """(cross-entropy at the size of the labels, what else the head carries)."""
    logit_BxHxWxY, statistics = segmentation_logits(head, state.statistics, feature_BxHxWxC, is_training=True)
    height, width = label_BxHxW.shape[1:]
    labelled_Y = state.labelled_Y.at[label_BxHxW].set(True, mode="drop")  # IGNORED is above all classes
    large_BxHxWxY = enlarge(logit_BxHxWxY, (height, width))
    return pixel_cross_entropy(large_BxHxWxY, label_BxHxW, divisor=divisor), _State(statistics, labelled_Y)
