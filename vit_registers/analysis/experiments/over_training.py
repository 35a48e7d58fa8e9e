"""over-training: how norms, outliers and registers change over the steps of a run. No JAX."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures.focus import map_similarity
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts, mean_maps


class RunStep(NamedTuple):
    """Rows.values of a model that is one step of a run."""

    run: str
    step: int
    shown: Any  # what the figure shows of it


def step_of(subject: Subject) -> tuple[str, int] | Gap:
    """(run, step) of the model; a gap where it is no run."""
    if subject.run is None or subject.step is None:
        return Gap(f"{subject.name}: not a run, so that it has no steps")
    return str(subject.run), subject.step


def by_run(found: Found) -> dict[str, list[Rows]]:
    """The models of each run, in the order of steps."""
    runs: dict[str, list[Rows]] = {}
    for one in found:
        runs.setdefault(one.values.run, []).append(one)
    return {run: sorted(steps, key=lambda one: one.values.step) for run, steps in runs.items()}


def in_steps(found: Found, *, fewest: int = 1) -> list[Rows]:
    """The models run by run and in the order of steps, of runs with at least `fewest` steps."""
    return [one for steps in by_run(found).values() if len(steps) >= fewest for one in steps]


def one_step_gaps(found: Found) -> list[str]:
    """A gap for each run of which only one step was given."""
    single = [run for run, steps in by_run(found).items() if len(steps) < 2]
    return [f"{run}: one step only; RUN@all shows all that are kept" for run in single]


def change_over_steps(found: Found, what: str, unit: str) -> str:
    """The finding over training: Rows.compared at the first and the last step of each run."""
    parts = []
    for steps in by_run(found).values():
        first, last = steps[0], steps[-1]
        text = f"at step {last.values.step:,}, {last.text}"
        if first is not last:
            text = (
                f"{what} changes from {number(first.compared, unit)} at step {first.values.step:,} to "
                f"{number(last.compared, unit)} at step {last.values.step:,}, over {len(steps)} steps"
            )
        parts.append(f"{last.name}: {text} (n = {last.count})")
    return f"{'; '.join(parts)}." if parts else "No run has several steps."


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = step_of(subject)
    if isinstance(at, Gap):
        return at
    norm_BxP = np.asarray(subject.patch_norms(), np.float64)
    median, p99 = map(float, np.quantile(norm_BxP, [0.5, 0.99]))
    likeness, largest = None, float(norm_BxP.max())
    if subject.layout.num_registers > 1:
        where = subject.layout.registers
        maps = (mean_maps(subject, images)[:, where] for images in in_parts(len(norm_BxP)))
        similar = [found_B for one in maps if (found_B := map_similarity(one)) is not None]
        likeness = summarize_values(np.concatenate(similar)).mean
    kurtosis = float(stats.kurtosis(norm_BxP.ravel())) if norm_BxP.std() > 0 else None
    share = 100 * subject.outliers(options.rule).share
    return Rows(
        tables={"Over training": [(*at, median, p99, largest, kurtosis, share, likeness)]},
        text=f"the largest norm of a patch is {number(largest)}",
        compared=largest,
        count=counted(len(norm_BxP), "image"),
        values=RunStep(*at, {"median": median, "p99": p99, "max": largest}),
    )


def _draw(found: Found) -> Pictures:
    if all(len(steps) < 2 for steps in by_run(found).values()):
        return []
    figure, axes = figures.new_axes()
    for i, (run, steps) in enumerate(by_run(found).items()):
        at = [one.values.step for one in steps]
        for name, style in (("median", "-"), ("p99", "--"), ("max", ":")):
            values, label = [one.values.shown[name] for one in steps], figures.legend_name(f"{run}: {name}")
            axes.plot(at, values, style, marker="o", ms=3, color=figures.color_of(i), label=label)
    axes.set(xlabel="step", ylabel="norm")
    figures.plain_log(axes.yaxis)
    figures.legend_above(axes)
    caption = "Norms of patches by step: median, 99th percentile and maximum of each run."
    return [Picture(name="steps", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="When in training do outliers appear, and do registers grow apart?",
    answers=f"{REGISTERS}, figure 4b; {SMALL}, figures 8 and 11",
    definition="Norms of the patches that the last block leaves, before the final norm, and the mean "
    "cosine between the attention maps of two registers on the same image, for each checkpoint of a run "
    "that was given (RUN@all takes all).",
    tables={
        "Over training": "run | step | median | p99 | max | kurtosis | {rule}, % | cosine between registers"
    },
    measure=_measure,
    features=("norms_LxT", "attention_NxExT"),
    draw=_draw,
    arrange=in_steps,
    across=one_step_gaps,
    sums_up=lambda found: change_over_steps(found, "the largest norm of a patch", ""),
)
