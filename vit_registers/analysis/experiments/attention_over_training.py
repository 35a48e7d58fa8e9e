"""attention-over-training: how attention changes over the steps of a run. No JAX."""

from collections.abc import Sequence

import numpy as np

from vit_registers.analysis.experiments.attention_grids import draw_maps, mean_maps, queries
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.run_steps import (
    RunStep,
    by_run,
    change_over_steps,
    one_step_gaps,
    step_of,
)
from vit_registers.analysis.measures.focus import focus
from vit_registers.analysis.published.tables import SMALL
from vit_registers.analysis.report.finding import number
from vit_registers.analysis.report.result import Gap, Picture, Rows
from vit_registers.analysis.subject import Options, Subject

_MOST_STEPS = 10  # that a grid of maps shows


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = step_of(subject)
    if isinstance(at, Gap):
        return at
    maps_1xExHxW, shares = mean_maps(subject, slice(0, 1)), _shares(subject)
    percent = 100 * shares[0][1]
    return Rows(
        tables={"Attention over training": [(*at, *row) for row in shares]},
        text=f"{shares[0][0]} sends {number(percent, '%')} of its attention to patches",
        compared=percent,
        count="1 image",
        values=RunStep(*at, (subject.example_NxHxWxC[:1], maps_1xExHxW, queries(subject))),
    )


def _shares(subject: Subject) -> list[tuple[str, float, float | None]]:
    """(query, share, entropy) of each map of the first image."""
    maps_ExHxW = mean_maps(subject, slice(0, 1))[0].astype(np.float64)
    share_E, entropy_E = maps_ExHxW.sum(axis=(1, 2)), focus(maps_ExHxW).entropy_share_E
    return [
        (name, float(share_E[i]), float(entropy_E[i]) if entropy_E is not None and share_E[i] else None)
        for i, name in enumerate(queries(subject))
    ]


def _several_steps(found: Sequence[Rows]) -> list[Rows]:
    """The models of runs with several steps, in their order."""
    return [one for steps in by_run(found).values() if len(steps) > 1 for one in steps]


def _draw(found: Sequence[Rows]) -> list[Picture]:
    pictures = []
    for run, steps in by_run(found).items():
        places = np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))
        shown = [steps[place].values for place in places]
        image, _, names = shown[0].shown
        maps = np.concatenate([one.shown[1] for one in shown])
        labels = [f"step {one.step}" for one in shown]
        caption = (
            f"{run}: attention over the first image; each map has its own scale from 0 to the maximum "
            "below it."
        )
        figure = draw_maps(np.repeat(image, len(shown), axis=0), maps, names, labels)
        pictures.append(Picture(name=f"steps-{steps[0].name}", caption=caption, figure=figure))
    return pictures


EXPERIMENT = Experiment(
    question="When in training do cls and the registers come to look where they do?",
    answers=f"{SMALL}, figures 9 and 12",
    definition="Attention of the last block in the first image, mean over heads, at each checkpoint of a "
    "run that was given (RUN@all takes all). The share is what the patches get of the softmax; the "
    f"entropy is of the map, divided by its sum. Pictures show {_MOST_STEPS} steps at most.",
    tables={"Attention over training": "run | step | query | share of patches | entropy / uniform"},
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers"),
    draw=_draw,
    arrange=_several_steps,
    across=one_step_gaps,
    sums_up=lambda found: change_over_steps(
        found, "the share of attention that the first query sends to patches", "%"
    ),
)
