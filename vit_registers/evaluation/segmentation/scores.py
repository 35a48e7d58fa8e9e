"""The scores of a head over a split, and their tables."""

from typing import NamedTuple

import numpy as np

from vit_registers.evaluation.segmentation.iou import class_iou, pixel_accuracy
from vit_registers.evaluation.task import TaskTable


class Scores(NamedTuple):
    """Of a split, from the numbers of pixels by class."""

    miou: float
    pixel_accuracy: float
    class_accuracy: float  # the mean over classes of the share of their pixels that is right


def scores(count_YxY: np.ndarray) -> Scores:
    """The scores of a confusion matrix; see iou.confusion."""
    accuracy_Y = class_accuracies(count_YxY)
    return Scores(
        float(np.nanmean(class_iou(count_YxY))), pixel_accuracy(count_YxY), float(np.nanmean(accuracy_Y))
    )


def class_accuracies(count_YxY: np.ndarray) -> np.ndarray:
    """The share of each class's pixels that is right; NaN for a class that is no label."""
    pixels_Y = count_YxY.sum(axis=1)
    right_Y = np.diag(count_YxY).astype(np.float64)
    return np.divide(right_Y, pixels_Y, out=np.full(len(pixels_Y), np.nan), where=pixels_Y > 0)


def class_table(count_YxY: np.ndarray, names: tuple[str, ...]) -> TaskTable:
    """A row for each class: IoU, accuracy, and its pixels in labels and in predictions."""
    rows = zip(
        names,
        map(_finite, class_iou(count_YxY)),
        map(_finite, class_accuracies(count_YxY)),
        map(int, count_YxY.sum(axis=1)),
        map(int, count_YxY.sum(axis=0)),
        strict=True,
    )
    return TaskTable(("class", "iou", "accuracy", "labelled pixels", "predicted pixels"), [*rows])


def confusion_table(count_YxY: np.ndarray, names: tuple[str, ...]) -> TaskTable:
    """The numbers of pixels: a row for each class that is labelled, a column for each that is predicted."""
    rows = [(name, *map(int, count_Y)) for name, count_Y in zip(names, count_YxY, strict=True)]
    return TaskTable(("labelled", *names), rows)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
