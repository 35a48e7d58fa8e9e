"""over-training: how norms and outliers change over the steps of a run. No JAX."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject

MOST_STEPS = 10  # that a grid of maps shows
_NAMES = ("min", "p1", "p5", "p25", "median", "p75", "p95", "p99", "max")
_MOST_BLOCKS = 4  # whose distributions are shown and tabled


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


def thinned(steps: Sequence[Rows]) -> list[Rows]:
    """At most MOST_STEPS of the steps of a run, at equal distances; the first and the last are kept."""
    places = np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).round().astype(int))
    return [steps[place] for place in places]


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
        if first is not last and last.compared is not None:
            text = (
                f"{what} changes from {number(first.compared, unit)} at step {first.values.step:,} to "
                f"{number(last.compared, unit)} at step {last.values.step:,}, over {len(steps)} steps"
            )
        parts.append(f"{last.name}: {text} (n = {last.count})")
    return f"{'; '.join(parts)}." if parts else "No run has several steps."


def _shown_blocks(depth: int) -> list[int]:
    """The numbers of at most _MOST_BLOCKS blocks at equal distances, from 1; the last one is among them."""
    count = min(depth, _MOST_BLOCKS)
    return [round(depth * (i + 1) / count) for i in range(count)]


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    at = step_of(subject)
    if isinstance(at, Gap):
        return at
    norms_BxLxT, rows, by_block = subject.store.read("norms_LxT"), [], {}
    for block in _shown_blocks(norms_BxLxT.shape[1] - 1):
        norm_BxP = np.asarray(norms_BxLxT[:, block, subject.layout.patches], np.float64)
        by_block[block] = np.quantile(norm_BxP, figures.BAND_QUANTILES)
        rows.append((*at, block, *map(float, by_block[block])))
    norm_BxP = np.asarray(subject.patch_norms(), np.float64)
    *_, median, _, _, p99, largest = map(float, by_block[block])
    mean, std = float(norm_BxP.mean()), float(norm_BxP.std())
    kurtosis = float(stats.kurtosis(norm_BxP.ravel())) if std > 0 else None
    spread = (std / mean if mean else None, p99 / median if median else None, kurtosis)
    share = 100 * subject.outliers(options.rule).share
    return Rows(
        tables={"Over training": [(*at, median, p99, largest, *spread, share)], "Norms by block": rows},
        text=f"the largest norm of a patch is {number(largest)}",
        compared=largest,
        count=counted(len(norm_BxP), "image"),
        values=RunStep(*at, by_block),
    )


def short_name(steps: Sequence[Rows]) -> str:
    """The name of a run, from those of its steps, which end in @STEP."""
    return steps[0].name.rpartition("@")[0] or steps[0].name


def _draw(found: Found) -> Pictures:
    """The last block of all runs side by side, and the blocks of each run; on one scale."""
    runs = {run: steps for run, steps in by_run(found).items() if len(steps) > 1}
    if not runs:
        return
    colors = {run: figures.color_of(i) for i, run in enumerate(by_run(found))}
    every = np.stack([shown_Q for one in found for shown_Q in one.values.shown.values()])
    limits = float(every.min()), float(every.max())  # of the blocks of all runs

    def panels(asked: Iterable[tuple[str, str, int]], limits: tuple[float, float] | None) -> Figure:
        bands = [
            figures.Band(
                title,
                [one.values.step for one in runs[run]],
                np.stack([one.values.shown[block] for one in runs[run]]),
                colors[run],
            )
            for title, run, block in asked
        ]
        return figures.band_panels(bands, xlabel="step", limits=limits)

    caption = f"Norms of patches after the last block by step, of each run: {figures.BANDS}."
    last = ((short_name(steps), run, max(steps[0].values.shown)) for run, steps in runs.items())
    yield Picture(name="steps", caption=caption, figure=panels(last, None))
    for run, steps in runs.items():
        caption = f"{run}: norms of patches after blocks by step: {figures.BANDS}."
        blocks = ((f"block {block}", run, block) for block in steps[0].values.shown)
        yield Picture(name=f"blocks-{short_name(steps)}", caption=caption, figure=panels(blocks, limits))


EXPERIMENT = Experiment(
    question="When in training do outliers appear, and in which block?",
    answers=f"{REGISTERS}, figure 4b; {SMALL}, figures 8c and 8d",
    definition="Norms of the patches that the last block leaves, before the final norm, for each checkpoint "
    "of a run that was given; a run folder without a step is read at all steps that were kept. Of "
    f"{_MOST_BLOCKS} blocks at most, at equal distances, the table has the quantiles. Kurtosis is Fisher's.",
    tables={
        "Over training": "run | step | median | p99 | max | std / mean | p99 / median | kurtosis | {rule}, %",
        "Norms by block": f"run | step | block | {' | '.join(_NAMES)}",
    },
    measure=_measure,
    features=("norms_LxT",),
    takes_steps=True,
    opens="Over training",
    draw=_draw,
    arrange=in_steps,
    across=one_step_gaps,
    sums_up=lambda found: change_over_steps(found, "the largest norm of a patch", ""),
)
