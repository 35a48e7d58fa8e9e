"""The TaskResult of depth."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vit_registers.evaluation.dense.baselines import POSITION, RANDOM
from vit_registers.evaluation.dense.pictures import side_by_side
from vit_registers.evaluation.depth.errors import ERRORS, DepthSummary, summarize
from vit_registers.evaluation.depth.measure import Measured
from vit_registers.evaluation.depth.protocol import Problem
from vit_registers.evaluation.task import TaskResult, TaskTable

_LEAST_WIDTH = 240  # px, of wide images in it
_UNKNOWN = (255, 255, 255)  # the color of pixels without a depth
# Of depths from near to far: points of a scale from dark violet over teal to yellow.
_SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
_NUM_LEGEND = 6


class Difference(NamedTuple):
    """The RMSE of a row minus that of the model, over the images that count."""

    mean: float
    spread: float  # its standard error


def depth_result(problem: Problem, measured: Mapping[str, Measured]) -> TaskResult:
    """The result from what each row of the table predicts; the first row is the model's."""
    model, own = next(iter(measured.items()))
    summaries = {
        name: summarize(one.errors, where=f"test data {problem.test}") for name, one in measured.items()
    }
    differences = {name: _difference(one, own) for name, one in measured.items() if name != model}
    return TaskResult(
        _values(problem, own, summaries, differences),
        {"rows": _table(summaries, differences)},
        {"predictions": _picture(problem, measured)},
        _notes(problem, model, summaries, differences),
    )


def _difference(row: Measured, model: Measured) -> Difference:
    pairs = zip(row.errors, model.errors, strict=True)
    values = np.array([a["rmse"] - b["rmse"] for a, b in pairs if a is not None and b is not None])
    spread = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Difference(float(values.mean()), float(spread))


def _values(
    problem: Problem,
    own: Measured,
    summaries: Mapping[str, DepthSummary],
    differences: Mapping[str, Difference],
) -> dict[str, float | int | str]:
    settings, summary = problem.settings, next(iter(summaries.values()))
    values: dict[str, float | int | str] = {}
    for name in ERRORS:
        values[name] = summary.means[name]
        values[f"{name}_se"] = summary.spreads[name]
    for key, row in (("random_backbone", RANDOM), ("position_only", POSITION)):
        values[f"{key}_rmse"] = summaries[row].means["rmse"]
        values[f"{key}_rmse_minus_own"] = differences[row].mean
        values[f"{key}_rmse_minus_own_se"] = differences[row].spread
    values |= {
        "test_images": summary.num_images,
        "without_depth": summary.num_without_depth,
        "non_finite": own.num_non_finite,
        "train_images": problem.train.number,
        "eval_crop": problem.eval_crop,
        "range_m": f"{problem.test_range_m[0]:g} to {problem.test_range_m[1]:g}",
    }
    names = ("num_steps", "batch_size", "learning_rate", "mean_steps", "gradient_weight", "num_blocks")
    return values | {name: getattr(settings, name) for name in (*names, "num_bins")}


def _table(summaries: Mapping[str, DepthSummary], differences: Mapping[str, Difference]) -> TaskTable:
    columns = [name for error in ERRORS for name in (error, f"{error}_se")]
    rows = []
    for name, summary in summaries.items():
        cells = [value for error in ERRORS for value in (summary.means[error], summary.spreads[error])]
        rows.append((name, *cells, *differences.get(name, (None, None))))
    return TaskTable(("features", *columns, "rmse_minus_model", "rmse_minus_model_se"), rows)


def _notes(
    problem: Problem, model: str, summaries: Mapping[str, DepthSummary], differences: Mapping[str, Difference]
) -> list[str]:
    notes = ["*_se is the standard error over images, of the mean of each image's error; heads have one seed"]
    if number := summaries[model].num_without_depth:
        notes.append(
            f"{number} test images have no depth in the part and range that count: they are left out"
        )
    for name, difference in differences.items():
        if difference.mean <= 2 * difference.spread:
            relation = "not clearly better" if difference.mean >= -2 * difference.spread else "worse"
            notes.append(
                f"{model} is {relation} than the baseline '{name}', whose RMSE minus that of {model} is "
                f"{difference.mean:.4f} m with a standard error of {difference.spread:.4f}"
            )
    if not problem.frozen.model.use_cls:
        notes.append("the model has no cls token: the head reads the mean patch in its place")
    return notes


def _picture(problem: Problem, measured: Mapping[str, Measured]) -> np.ndarray:
    """uint8 HxWx3: images, truth and predictions side by side, all depths in one scale of colors."""
    channels, first = problem.frozen.model.channels, next(iter(measured.values()))
    rows, truths = [], []
    for i in sorted(first.predictions):
        image_HxWxC, depth_HxW = problem.test.load(i, channels)
        image_HxWx3 = np.broadcast_to(image_HxWxC, (*depth_HxW.shape, 3))
        rows.append((image_HxWx3, depth_HxW, *(one.predictions[i] for one in measured.values())))
        truths.append(depth_HxW[depth_HxW > 0])
    low, high = (float(np.quantile(np.concatenate(truths), share)) for share in (0.01, 0.99))
    high = max(high, low + 1e-3)
    painted = [
        [_smaller(one) for one in (image, *(_colors(depth, low, high) for depth in depths))]
        for image, *depths in rows
    ]
    legend = [
        (f"{value:.3g} m", _colors(np.array([[value]]), low, high)[0, 0])
        for value in np.linspace(low, high, _NUM_LEGEND)
    ]
    return side_by_side(painted, ("image", "truth", *measured), legend)


def _smaller(image_HxWx3: np.ndarray) -> np.ndarray:
    """Every n-th pixel of an image that is wide."""
    step = max(image_HxWx3.shape[1] // _LEAST_WIDTH, 1)
    return image_HxWx3[::step, ::step]


def _colors(depth_HxW: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 HxWx3: the color of each depth, limited to the ends of the scale; white where it is 0."""
    is_known_HxW = np.isfinite(depth_HxW) & (depth_HxW > 0)
    place_HxW = np.clip((np.where(is_known_HxW, depth_HxW, low) - low) / (high - low), 0, 1) * (
        len(_SCALE) - 1
    )
    points = np.arange(len(_SCALE))
    color_HxWx3 = np.stack([np.interp(place_HxW, points, _SCALE[:, i]) for i in range(3)], axis=-1)
    return np.where(is_known_HxW[..., None], np.rint(color_HxWx3), _UNKNOWN).astype(np.uint8)
