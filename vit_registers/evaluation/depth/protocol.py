"""What all heads of a depth task have in common: data sets, settings, and the features of the model."""

from typing import Any, NamedTuple

import jax
import numpy as np

from vit_registers.config import DepthSettings, Tasks
from vit_registers.config.tasks import for_data
from vit_registers.data.sources.dense import DEPTH, DensePair, DenseSource
from vit_registers.data.sources.dense_catalog import open_dense
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.dense.examples import DenseExample, Examples
from vit_registers.evaluation.dense.features import block_tokens, network_input
from vit_registers.evaluation.dense.training import Features
from vit_registers.evaluation.depth.augment import training_pair
from vit_registers.evaluation.depth.errors import eval_region
from vit_registers.evaluation.depth.head import depth_features, spread_blocks
from vit_registers.evaluation.features import EditsOf
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.models.blocks import dims
from vit_registers.models.params import abstract_model, build_model


class DataSplit(NamedTuple):
    """A split of a data set."""

    source: DenseSource
    split: str

    @property
    def number(self) -> int:
        """The number of its examples."""
        return self.source.num_examples(self.split)

    def load(self, i: int, channels: int) -> DensePair:
        """The example `i`."""
        return self.source.load(self.split, i, channels)

    def __str__(self) -> str:
        return f"{self.source.name}:{self.split}"


class Problem(NamedTuple):
    """What is trained on, and what is measured. No setting is None but `crop`, for whole images."""

    frozen: FrozenModel
    settings: DepthSettings
    seed: int
    train: DataSplit
    test: DataSplit
    range_m: tuple[float, float]  # of the head's bins
    test_range_m: tuple[float, float]  # of depths that count
    eval_crop: str


def open_problem(frozen: FrozenModel, settings: Tasks, splits: Splits) -> Problem:
    """The Problem. Raises ConfigError or DataError for what does not fit, before anything is computed.

    A setting that is None is that of the training data; the range and the part of test images that count are
    those of the test data.
    """
    channels = frozen.model.channels
    if channels not in (1, 3):
        raise ConfigError(f"{frozen.name}: model.channels={channels}, and depth requires 1 or 3")
    train, test = (DataSplit(open_dense(name, DEPTH), split) for name, split in splits)
    own = for_data(settings.depth, train.source.protocol)
    measured = for_data(settings.depth, test.source.protocol)
    spread_blocks(dims(frozen.model).depth, own.num_blocks)
    for data in (test, train):
        if not data.number:
            raise DataError(f"split '{data.split}' of {data.source.name} has no images")
    problem = Problem(
        frozen,
        own,
        settings.seed,
        train,
        test,
        range_m=_range(own.range_m),
        test_range_m=_range(measured.range_m),
        eval_crop=measured.eval_crop or "all",
    )
    height, width = test.load(0, channels).label_HxW.shape
    eval_region(problem.eval_crop, height, width)
    training_examples(problem)
    return problem


def _range(range_m: tuple[float, float] | None) -> tuple[float, float]:
    assert range_m is not None
    if range_m[0] >= range_m[1]:
        raise ConfigError(f"tasks.depth.range_m={range_m}: the least depth must be below the largest one")
    return range_m


def training_examples(problem: Problem) -> Examples:
    """The training split, changed at random where the settings say so."""
    settings, train, channels = problem.settings, problem.train, problem.frozen.model.channels
    protocol = train.source.protocol

    def make(record: int, rng: np.random.Generator) -> DenseExample:
        image_HxWxC, depth_HxW = training_pair(
            train.load(record, channels), settings, protocol=protocol, rng=rng
        )
        return DenseExample(image_HxWxC, depth_HxW, (depth_HxW.shape[0], depth_HxW.shape[1]))

    size = make(0, np.random.default_rng(0)).size

    def make_equal(record: int, rng: np.random.Generator) -> DenseExample:
        example = make(record, rng)
        if example.size != size:
            (height, width), first = example.size, f"{size[0]} x {size[1]}"
            raise DataError(
                f"{train.source.describe(train.split, record)}: {height} x {width} pixels, and the first "
                f"image has {first}: set tasks.depth.crop to a size that fits into all training images"
            )
        return example

    is_random = bool(settings.augment) or settings.crop is not None
    return Examples(train.number, make_equal, is_random)


def depth_model_features(problem: Problem, edits: EditsOf | None) -> Features:
    """The features of the head: a function of the backbone and images, uint8, and their sizes."""
    model, data = problem.frozen.model, problem.frozen.data
    graphdef = abstract_model(model)[0]
    blocks = spread_blocks(dims(model).depth, problem.settings.num_blocks)

    def features(backbone: Any, image_BxHxWxC: jax.Array, size_Bx2: jax.Array) -> jax.Array:
        image_BxHxWxC = network_input(image_BxHxWxC, size_Bx2, data, patch_size=model.patch_size)
        network = build_model(graphdef, backbone)
        return depth_features(
            block_tokens(network, image_BxHxWxC, blocks=blocks, is_normed=False, edits=edits)
        )

    return features
