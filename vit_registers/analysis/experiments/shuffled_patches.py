"""shuffled-patches: the accuracy of the model's own head once patches have changed places."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.accuracy import score_head
from vit_registers.analysis.experiments.edited_models import BASE, NO_CHOICE, UNEDITED, choices
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.features.interventions import Intervention, nothing, shuffle_patches
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_bars, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject
from vit_registers.models.tokens import Grid

_LOGITS = ("logits_Y",)
WITHIN, QUARTERS, EVERYWHERE = "in quarters", "whole quarters", "everywhere"


class _Point(NamedTuple):
    how: str
    top1: float
    error: float


def shuffles(grid: Grid) -> tuple[str, ...]:
    """The kinds of shuffling that a grid allows: those by quarters require even sides of 4 or more."""
    has_quarters = min(grid) >= 4 and not any(side % 2 for side in grid)
    return (WITHIN, QUARTERS, EVERYWHERE) if has_quarters else (EVERYWHERE,)


def shuffled_orders(grid: Grid, how: str, num_images: int, *, seed: int = 0) -> np.ndarray:
    """order_BxP: place p of image i shows the patch order_BxP[i, p]. Every image has its own order.

    WITHIN moves patches inside each quarter of the grid, QUARTERS moves whole quarters, and EVERYWHERE moves
    patches to any place. A patch may keep its place, but no image keeps the usual order.
    """
    rng, (rows, columns) = np.random.default_rng(seed), grid
    place_HxW = np.arange(rows * columns).reshape(grid)
    if how == EVERYWHERE:
        return np.stack([_changed(rng, place_HxW.size) for _ in range(num_images)])
    row, column = rows // 2, columns // 2
    place_4xQ = place_HxW.reshape(2, row, 2, column).swapaxes(1, 2).reshape(4, row * column)
    order_BxP = np.empty((num_images, place_HxW.size), np.int64)
    for order_P in order_BxP:
        if how == WITHIN:
            for place_Q in place_4xQ:
                order_P[place_Q] = place_Q[_changed(rng, len(place_Q))]
        else:
            order_P[place_4xQ] = place_4xQ[_changed(rng, 4)]
    return order_BxP


def _changed(rng: np.random.Generator, count: int) -> np.ndarray:
    """A permutation of `count` numbers that is not the identity."""
    while True:
        order = rng.permutation(count)
        if count < 2 or (order != np.arange(count)).any():
            return order


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    label_B = subject.head_labels()
    if label_B is None:
        several = "an image has several labels, and accuracy is defined for one label here"
        return Gap(f"{subject.name}: {subject.other_classes() or several}")
    label_B, grid = label_B[: options.num_edited], subject.layout.patch_grid
    if subject.layout.num_patches < 2:
        return Gap(f"{subject.name}: an image is one patch, which cannot be moved")
    unedited = Intervention(name="unedited", edits=nothing, values={}, rows={})
    logits = {UNEDITED: subject.rerun(unedited, _LOGITS, options.num_edited).read("logits_Y")}
    for how in shuffles(grid):
        order_BxP = shuffled_orders(grid, how, len(label_B)).astype(np.int32)
        edited = Intervention(name=how, edits=shuffle_patches, values={}, rows={"order_BxP": order_BxP})
        logits[how] = subject.rerun(edited, _LOGITS, options.num_edited).read("logits_Y")
    first_B = choices(logits[UNEDITED])
    rows, points = [], []
    for how, logits_BxY in logits.items():
        one, then_B = score_head(logits_BxY, label_B), choices(logits_BxY)
        if one is None:
            return Gap(f"{subject.name}: no image has a label")
        top1, error = 100 * one.top1, 100 * one.top1_error
        same = percent(float(((then_B == first_B) & (then_B != NO_CHOICE)).mean()))
        rows.append((how, one.num_images, top1, error, same))
        points.append(_Point(how, top1, error))
    before, after = points[0].top1, points[-1].top1
    return Rows(
        tables={"Accuracy with shuffled patches": rows},
        text=f"the head is right on {number(before, '%')} of the images, and on {number(after, '%')} with "
        "their patches shuffled",
        compared=before - after,
        count=counted(rows[0][1], "image"),
        values=points,
    )


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes()
    grouped_bars(
        axes,
        found,
        lambda one: {point.how: point.top1 for point in one.values},
        lambda one: {point.how: point.error for point in one.values},
    )
    axes.set(ylabel="top-1, %")
    legend_above(axes)
    caption = "Top-1 of the own head, by where patches were moved to; bars are one standard error."
    return [Picture(name="shuffled-patches", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Does the head need to know where patches are?",
    answers="arXiv:2601.15506: whether masks or summaries give position",
    definition=lambda options: (
        "Patches change places before positions are added, so that tables, rotary positions, biases and "
        "masks all take a patch to be where it was moved to; every image has its own random order. In "
        "quarters: inside each quarter of the grid; whole quarters: quarters change places; everywhere: to "
        "any place. Quarters require a grid with even sides of 4 or more. A model without positions and "
        "masks gives the same output for every order. The standard error is that of drawing as many images. "
        f"On the first {options.num_edited} images."
    ),
    tables={
        "Accuracy with shuffled patches": (
            "model | patches shuffled | images | top-1, % | standard error | same choice, %"
        )
    },
    measure=_measure,
    runs_model=True,
    features=BASE,
    draw=_draw,
    compares="accuracy lost by shuffling everywhere, points",
)
