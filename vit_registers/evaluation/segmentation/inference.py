"""The confusion matrix of a head over a split, by sliding windows, at the size of the labels."""

import collections
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vit_registers.data.sources.dense import IGNORED, DenseSource
from vit_registers.evaluation.dense.examples import in_threads
from vit_registers.evaluation.dense.images import resized, size_of_short_side
from vit_registers.evaluation.pace import Pace
from vit_registers.evaluation.segmentation.iou import confusion
from vit_registers.evaluation.segmentation.protocol import Sizes
from vit_registers.evaluation.segmentation.windows import Predict, predicted_classes, sliding_logits

_THREADS = 8  # each holds the logits of an image
_MAX_LOGIT_BYTES = 1 << 30  # of a call


class Counted(NamedTuple):
    """What a head predicts of a split."""

    count_YxY: np.ndarray  # of confusion
    predictions: dict[int, np.ndarray]  # the classes of the images that are kept
    num_non_finite: int  # images with logits that are not finite


def windows_at_once(num_classes: int, crop: int, num_devices: int) -> int:
    """The number of windows of a call: a multiple of the devices, whose logits are at most about 1 GiB."""
    fit = max(_MAX_LOGIT_BYTES // (4 * num_classes * crop**2), 1)
    return -(-min(fit, 256) // num_devices) * num_devices


def count_split(
    predict: Predict,
    source: DenseSource,
    split: str,
    numbers: range,
    *,
    sizes: Sizes,
    channels: int,
    batch: int,
    kept: Collection[int],
    say: Callable[[str], None],
    what: str,
) -> Counted:
    """What is predicted of the images `numbers` of a split, with the classes of those `kept`.

    The short side of each image is resized to sizes.short_side; the mean logits of its windows are resized to
    the size of its labels, and the highest one is the prediction. `predict` gets `batch` windows, uint8.
    Every pixel of an image with logits that are not finite is wrong: the class after its label is counted,
    and IGNORED is kept.
    """
    num_classes = len(source.class_names)
    labels: collections.deque[np.ndarray] = collections.deque()

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image_HxWxC, label_HxW = source.load(split, i, channels)
        height, width = label_HxW.shape
        return resized(image_HxWxC, size_of_short_side((height, width), sizes.short_side)), label_HxW

    def images() -> Iterator[np.ndarray]:
        for image_HxWxC, label_HxW in in_threads(lambda i: [(load, i)], numbers, lambda made: made[0]):
            labels.append(label_HxW)
            yield image_HxWxC

    def counted(logit_HxWxY: np.ndarray, label_HxW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        height, width = label_HxW.shape
        if not np.isfinite(logit_HxWxY).all():
            wrong_HxW = (label_HxW + 1) % num_classes
            return confusion(label_HxW, wrong_HxW, num_classes), np.full(label_HxW.shape, IGNORED, np.int32)
        predicted_HxW = predicted_classes(logit_HxWxY, (height, width))
        return confusion(label_HxW, predicted_HxW, num_classes), predicted_HxW

    total_YxY, found = np.zeros((num_classes, num_classes), np.int64), {}
    num_non_finite = 0
    waiting: collections.deque[Future[tuple[np.ndarray, np.ndarray]]] = collections.deque()
    pace, done = Pace(f"{what}: split '{split}'", len(numbers), say, unit="images"), 0

    def take() -> None:
        nonlocal done, num_non_finite
        count_YxY, predicted_HxW = waiting.popleft().result()
        total_YxY[...] += count_YxY
        num_non_finite += bool((predicted_HxW == IGNORED).all())
        if numbers[done] in kept:
            found[numbers[done]] = predicted_HxW
        done += 1
        pace.done(done)

    windows = sliding_logits(predict, images(), window=sizes.crop, stride=sizes.stride, batch=batch)
    with ThreadPoolExecutor(_THREADS) as pool:
        for logit_HxWxY in windows:
            waiting.append(pool.submit(counted, logit_HxWxY, labels.popleft()))
            if len(waiting) > _THREADS:
                take()
        while waiting:
            take()
    return Counted(total_YxY, found, num_non_finite)


def add_counted(parts: Sequence[Counted]) -> Counted:
    """What is predicted of all images, from that of parts of them."""
    total_YxY = np.sum([one.count_YxY for one in parts], axis=0)
    predictions = {i: classes_HxW for one in parts for i, classes_HxW in one.predictions.items()}
    return Counted(total_YxY, predictions, sum(one.num_non_finite for one in parts))
