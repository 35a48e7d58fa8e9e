"""Intersection over union of classes, over all pixels of a split."""

import numpy as np

from vit_registers.data.sources.dense import IGNORED


def confusion(label_HxW: np.ndarray, predicted_HxW: np.ndarray, num_classes: int) -> np.ndarray:
    """The numbers of pixels by class, count_YxY, int64: rows are labels, columns predictions.

    Pixels with the label IGNORED are left out. Add the arrays of all images of a split.
    """
    is_valid_HxW = label_HxW != IGNORED
    place = label_HxW[is_valid_HxW].astype(np.int64) * num_classes + predicted_HxW[is_valid_HxW]
    return np.bincount(place, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(count_YxY: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; NaN for a class that is neither label nor prediction.

    A class that is predicted but is no label has 0. The mean IoU is numpy.nanmean of these.
    """
    intersection_Y = np.diag(count_YxY).astype(np.float64)
    union_Y = count_YxY.sum(axis=0) + count_YxY.sum(axis=1) - intersection_Y
    return np.divide(intersection_Y, union_Y, out=np.full(len(union_Y), np.nan), where=union_Y > 0)


def pixel_accuracy(count_YxY: np.ndarray) -> float:
    """The share of labelled pixels whose prediction is the label; NaN without pixels."""
    total = count_YxY.sum()
    return float(np.trace(count_YxY) / total) if total else float("nan")
