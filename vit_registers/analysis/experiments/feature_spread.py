"""feature-spread: whether the outputs of cls differ between images, or have collapsed. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.over_training import RunStep, by_run
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject

_MOST_IMAGES = 5_000  # whose pairs are compared
_DRAWN = {"std": "standard deviation", "nearest": "distance to the nearest", "cosine": "cosine"}


class Spread(NamedTuple):
    """How unit vectors x_BxD are spread.

    `std` is the mean over dimensions of the standard deviation, times sqrt(D): 1 if the vectors are spread
    over the sphere, 0 if all are equal. `cosine` is the mean over pairs, `nearest` the geometric mean of the
    distance of a vector to its nearest neighbour, whose negative logarithm is KoLeo. `dimensions` is the
    exponential of the entropy of the covariance's spectrum; None without variance.
    """

    std: float
    cosine: float
    nearest: float
    dimensions: float | None


def spread(x_BxD: np.ndarray) -> Spread:
    """The Spread of vectors, which are divided by their norms first; at least two."""
    x_BxD = np.asarray(x_BxD, np.float64)
    x_BxD = x_BxD / np.maximum(np.linalg.norm(x_BxD, axis=1, keepdims=True), 1e-12)
    number, width = x_BxD.shape
    dots_BxB = x_BxD @ x_BxD.T
    np.fill_diagonal(dots_BxB, np.nan)
    distance_B = np.sqrt(np.maximum(2 - 2 * np.nanmax(dots_BxB, axis=1), 0.0))
    variance_D = np.linalg.svd(x_BxD - x_BxD.mean(axis=0), compute_uv=False) ** 2
    share_D = variance_D[variance_D > 0] / variance_D.sum() if variance_D.sum() > 1e-20 else None
    return Spread(
        std=float(x_BxD.std(axis=0).mean() * np.sqrt(width)),
        cosine=float(np.nansum(dots_BxB) / (number * (number - 1))),
        nearest=float(np.exp(np.log(distance_B + 1e-8).mean())),
        dimensions=None if share_D is None else float(np.exp(-(share_D * np.log(share_D)).sum())),
    )


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    cls_BxD = subject.store.read("cls_D")[:_MOST_IMAGES]
    if len(cls_BxD) < 2:
        return Gap(f"{subject.name}: one image only, which has no other to compare with")
    found = spread(cls_BxD)
    return Rows(
        tables={"Spread of cls": [(subject.step, *found, cls_BxD.shape[1])]},
        text=f"the cosine of cls between images is {number(found.cosine)}, and its standard deviation "
        f"{number(100 * found.std, '%')} of that over a sphere",
        compared=found.cosine,
        count=counted(len(cls_BxD), "image"),
        values=RunStep(str(subject.run or subject.name), subject.step or 0, found),
    )


def _in_order(found: Found) -> Found:
    return [one for steps in by_run(found).values() for one in steps]


def _draw(found: Found) -> Pictures:
    figure, axes = figures.new_axes()
    if any(len(steps) > 1 for steps in by_run(found).values()):
        for i, (run, steps) in enumerate(by_run(found).items()):
            at = [one.values.step for one in steps]
            for style, (name, label) in zip(figures.STYLES, _DRAWN.items(), strict=False):
                values = [getattr(one.values.shown, name) for one in steps]
                text = figures.legend_name(f"{run}: {label}")
                axes.plot(at, values, style, marker="o", ms=3, color=figures.color_of(i), label=text)
        axes.set(xlabel="step")
        axes.grid(alpha=0.3)
    else:
        figures.grouped_bars(
            axes,
            found,
            lambda one: {
                label.replace(" ", "\n", 1): getattr(one.values.shown, name) for name, label in _DRAWN.items()
            },
        )
    figures.legend_above(axes)
    caption = (
        "Spread of the unit vectors of cls over images: standard deviation (1: over a sphere, 0: collapse), "
        "distance to the nearest other image, mean cosine between images (1: collapse)."
    )
    return [Picture(name="feature-spread", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Do different images get different outputs of cls, or have features collapsed?",
    answers="arXiv:2304.07193, KoLeo; the monitors of self-distillation",
    definition="cls after the final norm, divided by its norm, over images. std x sqrt(D): the mean over "
    "dimensions of the standard deviation, 1 over a sphere and 0 where all images are alike. Cosine: the "
    "mean over pairs of images. Nearest: the geometric mean of the distance to the nearest other image, "
    "whose negative logarithm is KoLeo. Dimensions: the exponential of the entropy of the covariance's "
    f"spectrum, of D. The first {_MOST_IMAGES:,} images at most.",
    tables={"Spread of cls": "model | step | std x sqrt(D) | cosine | nearest | dimensions | D"},
    measure=_measure,
    features=("cls_D",),
    draw=_draw,
    arrange=_in_order,
    compares="cosine of cls between images",
)
