"""focus-over-training: where cls and the registers look on average, over the steps of a run. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments import over_training
from vit_registers.analysis.experiments.attention_maps import MOST_QUERIES
from vit_registers.analysis.experiments.experiment import SMALL, Experiment
from vit_registers.analysis.experiments.positional_focus import MIDDLE, focus_rows, measure_maps
from vit_registers.analysis.measures.focus import map_similarity
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, Value, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class _Shown(NamedTuple):
    """RunStep.shown."""

    names: list[str]
    maps_ExHxW: np.ndarray  # means over images, in multiples of uniform attention
    mean: float | None  # overlap of registers; None: fewer than two, or none that is defined
    quantiles_Q: np.ndarray | None  # over images


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = over_training.step_of(subject)
    if isinstance(at, Gap):
        return at
    maps, overlaps = measure_maps(subject), []
    mean = quantiles_Q = None
    for kind, overlap_B in maps.overlap_B.items():
        kept_B = overlap_B[~np.isnan(overlap_B)]
        if not len(kept_B):
            continue
        found = float(kept_B.mean()), np.quantile(kept_B, _QUANTILES)
        maps_RxHxW = maps.mean_ExHxW[getattr(subject.layout, kind)]
        overlaps.append((*at, kind, found[0], *map(float, found[1]), *_of_mean_maps(maps_RxHxW)))
        mean, quantiles_Q = found if kind == "registers" else (mean, quantiles_Q)
    few = f"{subject.name}: fewer than two registers, whose maps could be compared"
    return Rows(
        tables={
            "Overlap over training": overlaps,
            "Focus over training": [(*at, *row) for row in focus_rows(maps)],
        },
        text="there are fewer than two registers"
        if mean is None
        else f"the maps of two registers have a cosine of {number(mean)}",
        compared=mean,
        count=counted(subject.store.num_read(), "image"),
        values=over_training.RunStep(
            *at, _Shown(maps.names, subject.layout.num_tokens * maps.mean_ExHxW, mean, quantiles_Q)
        ),
        gaps=[few] if mean is None else [],
    )


def _of_mean_maps(maps_RxHxW: np.ndarray) -> tuple[Value, Value]:
    """The mean cosine of two of the maps, and their mean correlation; None where it is not defined."""
    mean_R = maps_RxHxW.mean(axis=(1, 2))
    found = [map_similarity(one[None]) for one in (maps_RxHxW, maps_RxHxW - mean_R[:, None, None])]
    cosine, correlation = (float("nan") if one is None else float(one[0]) for one in found)
    return cosine, None if np.isnan(correlation) else correlation


def _draw(found: Found) -> Pictures:
    figure, axes = figures.new_axes()
    for i, steps in enumerate(over_training.by_run(found).values()):
        shown = [one.values.shown for one in steps]
        if any(one.mean is None for one in shown):
            continue
        at, color = [one.values.step for one in steps], figures.color_of(i)
        quantiles_XxQ = np.stack([one.quantiles_Q for one in shown])
        for low in (0, 1):
            bounds = quantiles_XxQ[:, low], quantiles_XxQ[:, -1 - low]
            axes.fill_between(at, *bounds, color=color, alpha=0.18, lw=0)
        label = figures.legend_name(over_training.short_name(steps))
        axes.plot(at, [one.mean for one in shown], "o-", ms=3, color=color, label=label)
    if axes.lines:
        axes.set(xlabel="step", ylabel="cosine", ylim=(None, 1.0))
        figures.legend_above(axes)
        caption = (
            "Cosine between the attention maps of two registers on the same image, by step: mean over pairs "
            "and images (line), and the middle 50 and 90 % of the images (bands)."
        )
        yield Picture(name="overlap", caption=caption, figure=figure)
    for run, steps in over_training.by_run(found).items():
        yield _maps_picture(run, over_training.thinned(steps), over_training.short_name(steps))


def _maps_picture(run: str, steps: list[Rows], name: str) -> Picture:
    names = steps[0].values.shown.names
    kept = [i for i, query in enumerate(names) if query != MIDDLE][:MOST_QUERIES]
    maps_XxExHxW = np.stack([one.values.shown.maps_ExHxW[kept] for one in steps])
    return Picture(
        name=f"focus-{name}",
        caption=f"{run}: mean maps of attention over all images, of each token (row) at each step (column). "
        "1: as much as if attention were uniform.",
        figure=tiles(
            [[None] * len(steps)] * len(kept),
            [list(maps_XxExHxW[:, i]) for i in range(len(kept))],
            rows=[names[i] for i in kept],
            columns=[f"step {one.values.step}" for one in steps],
            limits=(0.0, float(maps_XxExHxW.max())),
            label="attention x uniform",
        ),
    )


EXPERIMENT = Experiment(
    question="Do registers come to look at different places?",
    answers=f"{SMALL}, figure 11, and figure 10 at each step",
    definition="Attention maps of the last block, mean over heads, on the same images at each checkpoint of "
    "a run; a run folder without a step is read at all steps that were kept. The overlap is the cosine "
    "between the maps of two registers, or of two summaries, on the same image, mean over all pairs; the "
    "table has its quantiles over images. Maps are not negative, so even unlike maps have a cosine well "
    "above 0; beside it are the cosine and the correlation between their mean maps over all images. Entropy "
    "and centre of mass are of the mean maps.",
    tables={
        "Overlap over training": "run | step | of | cosine | p5 | p25 | median | p75 | p95"
        " | cosine of mean maps | correlation of mean maps",
        "Focus over training": "run | step | query | entropy / uniform | centre (y, x), patches"
        " | from the middle, patches",
    },
    measure=_measure,
    features=("attention_NxExT", "center_T"),
    needs_any=("cls", "registers", "summaries"),
    takes_steps=True,
    opens="Overlap over training",
    draw=_draw,
    arrange=lambda found: over_training.in_steps(found, fewest=2),
    across=over_training.one_step_gaps,
    sums_up=lambda found: over_training.change_over_steps(
        found, "the cosine between the maps of two registers", ""
    ),
)
