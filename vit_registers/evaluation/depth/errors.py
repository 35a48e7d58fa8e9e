"""The errors of predicted depths: of an image, and their mean and spread over images. No JAX."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vit_registers.config import lookup
from vit_registers.errors import DataError

Region = tuple[slice, slice]  # rows, columns

ERRORS = ("rmse", "abs_rel", "log10", "silog", "a1", "a2", "a3")
_NYU_SIZE = (480, 640)
_EIGEN = (slice(45, 471), slice(41, 601))  # of images of NYU Depth v2
_GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)  # top, bottom, left, right; shares of the image


def _eigen(height: int, width: int) -> Region:
    if (height, width) != _NYU_SIZE:
        raise DataError(
            f"tasks.depth.eval_crop='eigen' is for images of {_NYU_SIZE[0]} x {_NYU_SIZE[1]} pixels, and one "
            f"has {height} x {width}: set it to all"
        )
    return _EIGEN


def _garg(height: int, width: int) -> Region:
    top, bottom, left, right = _GARG
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def _all(height: int, width: int) -> Region:
    return slice(height), slice(width)


# tasks.depth.eval_crop: (height, width) -> the part of a test image that counts
EVAL_CROPS: dict[str, Callable[[int, int], Region]] = {"eigen": _eigen, "garg": _garg, "all": _all}


def eval_region(name: str, height: int, width: int) -> Region:
    """The part of an image that counts, of EVAL_CROPS.

    Raises ConfigError for an unknown name, and DataError for a size that the part is not defined for.
    """
    return lookup(EVAL_CROPS, name, "tasks.depth.eval_crop")(height, width)


def depth_errors(
    predicted_HxW: np.ndarray, depth_HxW: np.ndarray, *, low: float, high: float, crop: Region
) -> dict[str, float] | None:
    """ERRORS of one image, over pixels of `crop` with low < depth < high; None if there is no such pixel.

    rmse in metres; abs_rel, the mean of |difference| / depth; log10, the mean difference of base-10
    logarithms; silog, 100 times the standard deviation of the difference of logarithms; a1, a2 and a3, the
    share of pixels whose ratio is below 1.25, 1.25^2 and 1.25^3. The prediction is limited to [low, high]; a
    pixel whose prediction is not finite gets the end of that range that is farther from its depth.
    """
    depth_HxW, predicted_HxW = depth_HxW[crop].astype(np.float64), predicted_HxW[crop].astype(np.float64)
    is_valid_HxW = (depth_HxW > low) & (depth_HxW < high)
    if not is_valid_HxW.any():
        return None
    depth_N, predicted_N = depth_HxW[is_valid_HxW], np.clip(predicted_HxW[is_valid_HxW], low, high)
    farthest_N = np.where(depth_N - low > high - depth_N, low, high)
    predicted_N = np.where(np.isfinite(predicted_HxW[is_valid_HxW]), predicted_N, farthest_N)
    ratio_N = np.maximum(predicted_N / depth_N, depth_N / predicted_N)
    log_N = np.log(predicted_N) - np.log(depth_N)
    return {
        "rmse": float(np.sqrt(np.square(predicted_N - depth_N).mean())),
        "abs_rel": float((np.abs(predicted_N - depth_N) / depth_N).mean()),
        "log10": float(np.abs(log_N).mean() / np.log(10)),
        "silog": float(100 * np.sqrt(max(np.square(log_N).mean() - log_N.mean() ** 2, 0.0))),
        **{f"a{k}": float((ratio_N < 1.25**k).mean()) for k in (1, 2, 3)},
    }


class DepthSummary(NamedTuple):
    """The errors of a split."""

    means: dict[str, float]  # over images, by ERRORS
    spreads: dict[str, float]  # standard error of each mean: deviation over images / sqrt(images)
    num_images: int  # that count
    num_without_depth: int  # left out, as no pixel of the part that counts has a depth in the range


def summarize(errors: Sequence[dict[str, float] | None], *, where: str) -> DepthSummary:
    """The DepthSummary of the errors of each image. Raises DataError, about `where`, if no image counts."""
    counted = [one for one in errors if one is not None]
    if not counted:
        raise DataError(
            f"{where}: none of {len(errors)} images has a depth in the part and range that count: see that "
            "depths are above 0, and tasks.depth.range_m and tasks.depth.eval_crop"
        )
    number = len(counted)
    value_NxE = np.array([[one[name] for name in ERRORS] for one in counted])
    deviation_E = value_NxE.std(axis=0, ddof=1) if number > 1 else np.zeros(len(ERRORS))
    return DepthSummary(
        means=dict(zip(ERRORS, value_NxE.mean(axis=0).tolist(), strict=True)),
        spreads=dict(zip(ERRORS, (deviation_E / number**0.5).tolist(), strict=True)),
        num_images=number,
        num_without_depth=len(errors) - number,
    )
