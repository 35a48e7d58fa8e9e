"""The variance of patch features inside and outside of boxes, with and without outliers. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.measures.severity import ROUNDING, Moments, finite
from vit_registers.models.tokens import Grid

REGIONS = ("inside", "outside")


class Cells(NamedTuple):
    """The patches of an image: whether the centre of each is in the image, and whether it is in a box."""

    is_image_P: np.ndarray
    is_inside_P: np.ndarray


class RegionVariance(NamedTuple):
    """Variance of patches. None: no patch, or for the share no feature that is not zero."""

    num_patches: int
    total: float | None  # trace of the covariance around the mean of all, divided by the number of patches
    within: float | None  # the same around the mean of the region in each image
    share: float | None  # total / mean squared norm, 0 to 1: it does not depend on the scale of features


def cells_of_boxes(
    box_xyxy_px: np.ndarray, grid: Grid, cell_px: tuple[float, float], size_px: tuple[int, int]
) -> Cells:
    """The patches of a grid whose centres are in the image, and those whose centres are in one of its boxes.

    `cell_px` are height and width of a patch, `size_px` of the image, which the grid may exceed on the right
    and at the bottom. Boxes have exclusive ends; one that crosses the edge counts as far as the image goes.
    """
    (rows, columns), (height, width) = grid, cell_px
    y_P, x_P = (axis.ravel() for axis in np.mgrid[:rows, :columns])
    y_P, x_P = (y_P + 0.5) * height, (x_P + 0.5) * width
    x0, y0, x1, y1 = np.asarray(box_xyxy_px, np.float64).reshape(-1, 4, 1).transpose(1, 0, 2)
    is_inside_P = ((x0 <= x_P) & (x_P < x1) & (y0 <= y_P) & (y_P < y1)).any(axis=0)
    is_image_P = (y_P < size_px[0]) & (x_P < size_px[1])
    return Cells(is_image_P, is_inside_P & is_image_P)


class RegionSums:
    """Sums for `RegionVariance` over images, in memory of a few vectors."""

    def __init__(self) -> None:
        self._all, self._within = Moments(), 0.0

    def add(self, feature_PxD: np.ndarray) -> None:
        """Adds the patches of the region in an image. Raises DataError for features that are not finite."""
        feature_PxD = finite(feature_PxD, "the patch features")
        self._all.add(feature_PxD)
        own = Moments()
        own.add(feature_PxD)
        self._within += own.scatter

    def result(self) -> RegionVariance:
        """The variances of all images so far."""
        count = self._all.count
        if not count:
            return RegionVariance(0, None, None, None)
        total = self._all.scatter / count
        size = total + float(np.square(self._all.mean_D).sum())
        share = None if size == 0 else total / size if total > ROUNDING * size else 0.0
        return RegionVariance(count, total, self._within / count, share)
