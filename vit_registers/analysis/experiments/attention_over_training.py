"""attention-over-training: how attention changes over the steps of a run. No JAX."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments import over_training
from vit_registers.analysis.experiments.attention_maps import MOST_QUERIES
from vit_registers.analysis.experiments.experiment import SMALL, Experiment
from vit_registers.analysis.measures.severity import attention_entropy
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject, in_parts, mean_maps, queries

_FIRST, _REMOVED, _PERSISTENT = "first", "removed", "persistent"


class _Shown(NamedTuple):
    """RunStep.shown: the first images, the same ones at each step."""

    image_NxHxWxC: np.ndarray
    maps_NxExHxW: np.ndarray  # in multiples of uniform attention
    names: list[str]  # of the E queries


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = over_training.step_of(subject)
    if isinstance(at, Gap):
        return at
    names, num_images, uniform = queries(subject), subject.store.num_read(), subject.layout.num_tokens
    parts = []
    for images in in_parts(num_images):
        maps_BxExHxW = mean_maps(subject, images).astype(np.float64)
        maps_BxExP = maps_BxExHxW.reshape(*maps_BxExHxW.shape[:2], -1)
        entropy_BxE = attention_entropy(maps_BxExP)[1]
        undefined_BxE = np.full(maps_BxExP.shape[:2], np.nan)
        numbers = (100 * maps_BxExP.sum(-1), undefined_BxE if entropy_BxE is None else entropy_BxE)
        parts.append(np.stack([*numbers, uniform * maps_BxExP.max(-1)], axis=-1))
    values_BxEx3 = np.concatenate(parts)
    rows = []
    for i, name in enumerate(names):
        means = (values_Bx3[~np.isnan(values_Bx3)] for values_Bx3 in values_BxEx3[:, i].T)
        rows.append((*at, name, *(float(kept.mean()) if len(kept) else None for kept in means)))
    percent = rows[0][3]
    example_NxHxWxC = subject.example_NxHxWxC[:num_images]
    maps_NxExHxW = uniform * mean_maps(subject, slice(0, len(example_NxHxWxC)))
    return Rows(
        tables={"Attention over training": rows},
        text=f"{names[0]} sends {number(percent, '%')} of its attention to patches",
        compared=percent,
        count=counted(num_images, "image"),
        values=over_training.RunStep(*at, _Shown(example_NxHxWxC, maps_NxExHxW, names)),
    )


def choose_images(peak_XxN: np.ndarray) -> dict[str, int]:
    """The images that pictures show, by the largest weight in the map of one query at X steps on N images.

    The first image; "removed": the one whose weight falls most from the highest of earlier steps to the last
    step; "persistent": the one whose median weight over the second half of the steps is the largest.
    """
    fall_N = peak_XxN[:-1].max(axis=0) - peak_XxN[-1]
    late_N = np.median(peak_XxN[len(peak_XxN) // 2 :], axis=0)
    return {_FIRST: 0, _REMOVED: int(fall_N.argmax()), _PERSISTENT: int(late_N.argmax())}


_WHY = {
    _FIRST: "the first image",
    _REMOVED: "where the peak of the first token falls most by the last step",
    _PERSISTENT: "where it is the largest over the second half of the steps",
}


def _draw(found: Found) -> Pictures:
    for run, steps in over_training.by_run(found).items():
        shown: list[_Shown] = [one.values.shown for one in steps]
        peak_XxN = np.stack([one.maps_NxExHxW[:, 0].max(axis=(1, 2)) for one in shown])
        reasons: dict[int, list[str]] = {}
        for kind, image in choose_images(peak_XxN).items():
            reasons.setdefault(image, []).append(kind)
        for image, kinds in reasons.items():
            why = ", and ".join(_WHY[kind] for kind in kinds)
            yield Picture(
                name=f"{kinds[0]}-{over_training.short_name(steps)}",
                caption=f"{run}: attention of each token (row) in image {image + 1} of {len(peak_XxN[0])} at "
                f"each step (column): {why}. 1: as much as if attention were uniform.",
                figure=_grid(over_training.thinned(steps), image),
            )


def _grid(steps: list[Rows], image: int) -> Figure:
    shown: list[_Shown] = [one.values.shown for one in steps]
    names = shown[0].names[:MOST_QUERIES]
    maps_XxExHxW = np.stack([one.maps_NxExHxW[image, : len(names)] for one in shown])
    return tiles(
        [[shown[0].image_NxHxWxC[image]] * len(shown)] * (1 + len(names)),
        [[None] * len(shown), *(list(maps_XxExHxW[:, i]) for i in range(len(names)))],
        rows=("image", *names),
        columns=[f"step {one.values.step}" for one in steps],
        limits=(0.0, float(maps_XxExHxW.max())),
        label="attention x uniform",
        alpha=0.8,
    )


EXPERIMENT = Experiment(
    question="When in training do cls and the registers come to look where they do?",
    answers=f"{SMALL}, figures 9 and 12",
    definition="Attention of the last block, mean over heads, on the same images at each checkpoint of a "
    "run; a run folder without a step is read at all steps that were kept. The share is what the patches get "
    "of the softmax; the entropy is of the map, divided by its sum; the peak is the largest weight of a "
    "patch, in multiples of uniform attention. The table has means over all images. Pictures show "
    f"{over_training.MOST_STEPS} steps at most, of the first image, and of two that are chosen among the "
    "first ones (--examples) by the peak of the first token: where it falls most, and where it stays.",
    tables={"Attention over training": "run | step | query | to patches, % | entropy / uniform | peak"},
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers", "summaries"),
    takes_steps=True,
    draw=_draw,
    arrange=lambda found: over_training.in_steps(found, fewest=2),
    across=over_training.one_step_gaps,
    sums_up=lambda found: over_training.change_over_steps(
        found, "the share of attention that the first query sends to patches", "%"
    ),
)
