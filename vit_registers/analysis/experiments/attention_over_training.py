"""attention-over-training: how attention changes over the steps of a run. No JAX."""

import numpy as np

from vit_registers.analysis.experiments import over_training
from vit_registers.analysis.experiments.attention_maps import MOST_QUERIES
from vit_registers.analysis.experiments.experiment import SMALL, Experiment
from vit_registers.analysis.measures.focus import focus
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject, mean_maps, queries

_MOST_STEPS = 10  # that a grid of maps shows


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = over_training.step_of(subject)
    if isinstance(at, Gap):
        return at
    maps_1xExHxW, names = mean_maps(subject, slice(0, 1)), queries(subject)
    maps_ExHxW = maps_1xExHxW[0].astype(np.float64)
    share_E, entropy_E = maps_ExHxW.sum(axis=(1, 2)), focus(maps_ExHxW).entropy_share_E
    rows = []
    for i, name in enumerate(names):
        entropy = float(entropy_E[i]) if entropy_E is not None and share_E[i] else None
        rows.append((*at, name, 100 * float(share_E[i]), entropy))
    percent = 100 * float(share_E[0])
    return Rows(
        tables={"Attention over training": rows},
        text=f"{names[0]} sends {number(percent, '%')} of its attention to patches",
        compared=percent,
        count="1 image",
        values=over_training.RunStep(
            *at, (subject.example_NxHxWxC[:1], subject.layout.num_tokens * maps_1xExHxW, names)
        ),
    )


def _draw(found: Found) -> Pictures:
    for run, steps in over_training.by_run(found).items():
        places = np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))
        shown = [steps[place].values for place in places]
        (image,), _, names = shown[0].shown
        names = names[:MOST_QUERIES]
        maps = np.concatenate([one.shown[1] for one in shown])
        labels = [f"step {one.step}" for one in shown]
        yield Picture(
            name=f"steps-{steps[0].name}",
            caption=f"{run}: attention of each token (row) in the first image at each step (column). 1: as "
            "much as if attention were uniform.",
            figure=tiles(
                [[image] * len(shown)] * (1 + len(names)),
                [[None] * len(shown), *(list(maps[:, i]) for i in range(len(names)))],
                rows=("image", *names),
                columns=labels,
                limits=(0.0, float(maps.max())),
                label="attention x uniform",
                alpha=0.8,
            ),
        )


EXPERIMENT = Experiment(
    question="When in training do cls and the registers come to look where they do?",
    answers=f"{SMALL}, figures 9 and 12",
    definition="Attention of the last block in the first image, mean over heads, at each checkpoint of a "
    "run that was given (RUN@all takes all). The share is what the patches get of the softmax; the "
    f"entropy is of the map, divided by its sum. Pictures show {_MOST_STEPS} steps at most.",
    tables={"Attention over training": "run | step | query | to patches, % | entropy / uniform"},
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers", "summaries"),
    draw=_draw,
    arrange=lambda found: over_training.in_steps(found, fewest=2),
    across=over_training.one_step_gaps,
    sums_up=lambda found: over_training.change_over_steps(
        found, "the share of attention that the first query sends to patches", "%"
    ),
)
