"""over-training: how norms, outliers and registers change over the steps of a run. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.experiments.attention_grids import mean_maps
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.run_steps import (
    RunStep,
    by_run,
    change_over_steps,
    in_steps,
    one_step_gaps,
    step_of,
)
from vit_registers.analysis.measures.focus import map_similarity
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.published.tables import REGISTERS, SMALL
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, legend_name, scale_for
from vit_registers.analysis.report.finding import counted, number
from vit_registers.analysis.report.result import Gap, Picture, Rows
from vit_registers.analysis.subject import Options, Subject, in_parts

_COLORS = (BLUE, ORANGE, GREEN, GREY)


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = step_of(subject)
    if isinstance(at, Gap):
        return at
    norm_BxP = np.asarray(subject.patch_norms(), np.float64)
    median, p99 = map(float, np.quantile(norm_BxP, [0.5, 0.99]))
    likeness = None
    if subject.layout.num_registers > 1:
        first = int(subject.layout.has_cls)
        maps = (mean_maps(subject, images)[:, first:] for images in in_parts(len(norm_BxP)))
        similar = [found_B for one in maps if (found_B := map_similarity(one)) is not None]
        likeness = summarize_values(np.concatenate(similar)).mean
    kurtosis = float(stats.kurtosis(norm_BxP.ravel())) if norm_BxP.std() > 0 else None
    share = 100 * subject.outliers(options.rule).share
    numbers = (median, p99, float(norm_BxP.max()), kurtosis, share, likeness)
    return Rows(
        tables={"Over training": [(*at, *numbers)]},
        text=f"the largest norm of a patch is {number(numbers[2])}",
        compared=numbers[2],
        count=counted(len(norm_BxP), "image"),
        values=RunStep(*at, numbers),
    )


def _draw(found: Sequence[Rows]) -> list[Picture]:
    runs = by_run(found)
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (run, steps) in enumerate(runs.items()):
        color = _COLORS[i % len(_COLORS)]
        at = [one.values.step for one in steps]
        for place, (name, style) in enumerate((("median", "-"), ("p99", "--"), ("max", ":"))):
            values = [one.values.shown[place] for one in steps]
            axes.plot(at, values, style, marker="o", ms=3, color=color, label=legend_name(f"{run}: {name}"))
    largest = np.array([one.values.shown[2] for one in found])
    axes.set(xlabel="step", ylabel="norm", yscale=scale_for(largest))
    axes.legend(frameon=False, fontsize=7)
    return [Picture(name="steps", caption="Norms of patches by step.", figure=figure)]


EXPERIMENT = Experiment(
    question="When in training do outliers appear, and do registers grow apart?",
    answers=f"{REGISTERS}, figure 4b; {SMALL}, figures 8 and 11",
    definition="Norms of the patches that the last block leaves, before the final norm, and the mean "
    "cosine between the attention maps of two registers on the same image, for each checkpoint of a run "
    "that was given (RUN@all takes all).",
    tables={
        "Over training": "run | step | median | p99 | max | kurtosis | {rule}, % | cosine between registers",
    },
    measure=_measure,
    features=("norms_LxT", "attention_NxExT"),
    draw=_draw,
    arrange=in_steps,
    across=one_step_gaps,
    sums_up=lambda found: change_over_steps(found, "the largest norm of a patch", ""),
)
