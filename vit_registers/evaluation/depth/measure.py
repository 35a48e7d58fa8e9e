"""The errors of a depth head over a split: whole images and their mirror images, batch by batch."""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.data.sources.dense import DensePair
from vit_registers.evaluation.dense.examples import in_threads
from vit_registers.evaluation.dense.training import Features
from vit_registers.evaluation.depth.errors import depth_errors, eval_region
from vit_registers.evaluation.depth.head import predict_depth
from vit_registers.evaluation.depth.protocol import Problem
from vit_registers.evaluation.pace import Pace
from vit_registers.runtime.mesh import own_mesh
from vit_registers.training.sharding import batch_sharding, replicated


class Measured(NamedTuple):
    """What a head predicts of a split."""

    errors: list[dict[str, float] | None]  # of each image; None if no pixel counts
    predictions: dict[int, np.ndarray]  # depth_HxW of the images that are kept
    num_non_finite: int  # images with a prediction that is not finite


def make_predictor(problem: Problem, features: Features) -> Callable[[Any, Any, jax.Array], jax.Array]:
    """A compiled function of backbone, head and images, uint8: depth_BxHxW at their size.

    It is the mean of the prediction and of that of the mirror image, each limited to the range of the bins.
    """
    low, high = problem.range_m

    @functools.partial(jax.jit, out_shardings=replicated(own_mesh(problem.frozen.mesh)))
    def predict(backbone: Any, head: Any, image_BxHxWxC: jax.Array) -> jax.Array:
        height, width = image_BxHxWxC.shape[1:3]
        size_Bx2 = jnp.broadcast_to(jnp.array([[height, width]]), (len(image_BxHxWxC), 2))

        def one(image_BxHxWxC: jax.Array) -> jax.Array:
            feature_BxHxWxC = features(backbone, image_BxHxWxC, size_Bx2)
            depth_BxHxW = predict_depth(head, feature_BxHxWxC, (height, width), low=low, high=high)
            return jnp.clip(depth_BxHxW, low, high)

        return (one(image_BxHxWxC) + one(image_BxHxWxC[:, :, ::-1])[:, :, ::-1]) / 2

    return predict


def measure(
    problem: Problem,
    predict: Callable[[jax.Array], jax.Array],
    numbers: range,
    *,
    kept: Collection[int],
    pace: Pace,
) -> Measured:
    """The Measured of the images `numbers` of the test split.

    `predict` maps a batch of images on the devices of this process to depth_BxHxW.
    """
    layout = batch_sharding(own_mesh(problem.frozen.mesh))
    errors: list[dict[str, float] | None] = []
    predictions, num_non_finite = {}, 0
    low, high = problem.test_range_m
    for pairs in _batches(problem, numbers):
        image_BxHxWxC = np.stack([pair.image_HxWxC for pair in pairs])
        missing = problem.settings.batch_size - len(pairs)
        image_BxHxWxC = np.concatenate([image_BxHxWxC, image_BxHxWxC[-1:].repeat(missing, axis=0)])
        depth_BxHxW = np.asarray(predict(jax.device_put(image_BxHxWxC, layout)))
        region = eval_region(problem.eval_crop, *pairs[0].label_HxW.shape)
        for pair, predicted_HxW in zip(pairs, depth_BxHxW, strict=False):
            if (number := numbers[len(errors)]) in kept:
                predictions[number] = predicted_HxW
            num_non_finite += not np.isfinite(predicted_HxW).all()
            errors.append(depth_errors(predicted_HxW, pair.label_HxW, low=low, high=high, crop=region))
        pace.done(len(errors))
    return Measured(errors, predictions, num_non_finite)


def add_measured(parts: Sequence[Measured]) -> Measured:
    """The Measured of all images, from those of parts of them, in order."""
    errors = [error for one in parts for error in one.errors]
    predictions = {i: depth_HxW for one in parts for i, depth_HxW in one.predictions.items()}
    return Measured(errors, predictions, sum(one.num_non_finite for one in parts))


def _batches(problem: Problem, numbers: range) -> Iterator[list[DensePair]]:
    """The examples `numbers` of the test split in order, up to a batch of one size at a time."""
    test, channels, size = problem.test, problem.frozen.model.channels, problem.settings.batch_size
    waiting: list[DensePair] = []

    def tasks(first: int) -> list[tuple[Any, ...]]:
        return [(test.load, i, channels) for i in range(first, min(first + size, numbers.stop))]

    for pairs in in_threads(tasks, range(numbers.start, numbers.stop, size), list):
        for pair in pairs:
            if waiting and (len(waiting) == size or waiting[0].label_HxW.shape != pair.label_HxW.shape):
                yield waiting
                waiting = []
            waiting.append(pair)
    if waiting:
        yield waiting
