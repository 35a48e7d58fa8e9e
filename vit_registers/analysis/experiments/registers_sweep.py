"""registers-sweep: outliers, accuracy and dense scores by the number of registers, in one figure."""

import dataclasses
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.edited_models import FROZEN
from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.experiments.frozen_tasks import (
    HOW_TO_MEASURE,
    OF_FEATURES,
    find_numbers,
    not_compared,
    unlike_tasks,
)
from vit_registers.analysis.experiments.outliers_by_registers import newest_steps, outlier_share
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY, color_of
from vit_registers.analysis.report.figures import WIDTH
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.runs.task_results import TASK_NUMBERS

_OUTLIERS, _RATIO = "outliers, %", "largest norm / median"
_PANELS = (_OUTLIERS, _RATIO, *(TASK_NUMBERS[task].what for task in OF_FEATURES))
_PANEL_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 1.1, 0.3, 0.45
_SLOT = 0.5  # the part of the distance between two numbers of registers that models of one number take up
_TABLE = "By the number of registers"


class _Point(NamedTuple):
    """What the figure shows of a model."""

    run: str
    step: int
    registers: int
    panels: dict[str, tuple[float, float | None]]  # value and standard error, by _PANELS
    origins: dict[str, tuple[str, str, bool]]  # of the numbers of tasks


def _measure(subject: Subject, options: Options) -> Rows:
    (share, ratio), numbers = outlier_share(subject, options.rule), find_numbers(subject, ("knn",))
    heads = {task: one.headline for task, one in numbers.found.items()}
    scores = {
        TASK_NUMBERS[task].what: (head.value, head.error)
        for task, head in heads.items()
        if task in OF_FEATURES and head.value is not None
    }
    panels: dict[str, tuple[float, float | None]] = {_OUTLIERS: (share, None), **scores}
    if ratio is not None:
        panels[_RATIO] = ratio, None
    cells = [scores.get(what, (None, None)) for what in _PANELS[2:]]
    count = subject.layout.num_registers
    row = (subject.step, count, share, ratio, *(cell for pair in cells for cell in pair))
    return Rows(
        tables={_TABLE: [row]},
        text=f"{number(share, '%')} of the patches are outliers",
        count=counted(len(subject.store.read("norms_LxT")), "image"),
        values=_Point(str(subject.run or subject.name), subject.step or 0, count, panels, numbers.origins()),
        gaps=numbers.gaps,
        images=numbers.images,
    )


def _comparable(found: Found) -> Found:
    """The last step of each run, by the number of registers, without panels that must not be compared."""
    unlike = {TASK_NUMBERS[task].what for task in _unlike(found)}
    kept = []
    for one in _newest(found):
        panels = {what: pair for what, pair in one.values.panels.items() if what not in unlike}
        kept.append(dataclasses.replace(one, values=one.values._replace(panels=panels)))
    return kept


def _newest(found: Found) -> list[Rows]:
    return newest_steps(found, lambda one: one.values[:3])


def _unlike(found: Found) -> list[str]:
    return unlike_tasks([one.values.origins for one in _newest(found)])


def _across(found: Found) -> list[str]:
    counts = {one.values.registers for one in found}
    gaps = not_compared(_unlike(found))
    lacking = {
        one.name: [task for task in OF_FEATURES if task not in one.values.origins] for one in _newest(found)
    }
    of_all = [task for task in OF_FEATURES if all(task in tasks for tasks in lacking.values())]
    if found and of_all:
        gaps.append(f"not measured for any model: {', '.join(of_all)}; {HOW_TO_MEASURE}")
    for name, tasks in lacking.items():
        if own := [task for task in tasks if task not in of_all]:
            gaps.append(f"{name}: not measured: {', '.join(own)}; {HOW_TO_MEASURE}")
    if found and len(counts) < 2:
        which = counted(min(counts), "register")
        gaps.append(f"all models have {which}; give runs with other numbers of registers with --checkpoint")
    return gaps


def _sums_up(found: Found) -> str:
    """The means of the models of each number of registers."""
    counts = sorted({one.values.registers for one in found})
    clauses = []
    for what in _shown(found):
        name, _, unit = what.partition(", ")
        means = _means(found, counts, what)
        values = [number(means.get(slot)) for slot in range(len(counts))]
        clauses.append(f"{name} {', '.join(values)} {unit}".strip())
    models = f"means of {len(found)} models, n = {found[0].count}"
    return f"With {', '.join(map(str, counts))} registers ({models}): {'; '.join(clauses)}."


def _shown(found: Found) -> list[str]:
    """The panels that at least one model has."""
    return [what for what in _PANELS if any(what in one.values.panels for one in found)]


def _means(found: Found, counts: list[int], what: str) -> dict[int, float]:
    """The mean over the models of each number of registers, by its place in `counts`."""
    values = {
        slot: [
            one.values.panels[what][0]
            for one in found
            if one.values.registers == count and what in one.values.panels
        ]
        for slot, count in enumerate(counts)
    }
    return {slot: float(np.mean(own)) for slot, own in values.items() if own}


def _draw(found: Found) -> Pictures:
    counts, shown = sorted({one.values.registers for one in found}), _shown(found)
    if len(counts) < 2:
        return
    height = _TOP_INCHES + _PANEL_INCHES * len(shown) + _BOTTOM_INCHES
    figure = Figure(figsize=(WIDTH, height))
    column = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    bottom, top = _BOTTOM_INCHES / height, 1 - _TOP_INCHES / height
    figure.subplots_adjust(left=0.17, right=0.97, bottom=bottom, top=top, hspace=0.35)
    for axes, what in zip(column, shown, strict=True):
        _draw_panel(axes, found, counts, what)
    column[-1].set_xticks(range(len(counts)), map(str, counts))
    column[-1].set_xlim(-0.5, len(counts) - 0.5)
    column[-1].set_xlabel("registers", fontsize=9)
    caption = (
        "By the number of registers: outliers, and what frozen features are good for (of depth, lower is "
        "better). A point for each model, at the last step of a run; bars are one standard error of the "
        "measurement; lines go through the means of the models of each number."
    )
    yield Picture(name="registers-sweep", caption=caption, figure=figure, is_headline=True)


def _draw_panel(axes: Axes, found: Found, counts: list[int], what: str) -> None:
    for slot, count in enumerate(counts):
        here = [one for one in found if one.values.registers == count and what in one.values.panels]
        for place, one in enumerate(here):
            value, error = one.values.panels[what]
            x = slot + _SLOT * ((place + 0.5) / len(here) - 0.5)
            axes.errorbar(x, value, error, fmt="o", ms=4, capsize=2, lw=1.0, color=color_of(one.place))
    means = _means(found, counts, what)
    axes.plot(list(means), list(means.values()), "-", color=GREY, lw=1.0, zorder=0)
    axes.set_title(what, fontsize=9, loc="left", pad=3)
    axes.margins(y=0.15)
    if what == _OUTLIERS:
        axes.set_ylim(bottom=0.0)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis="y")
    axes.spines[["top", "right"]].set_visible(False)


EXPERIMENT = Experiment(
    question="How many registers are best: for artifacts, for accuracy and for dense tasks?",
    answers=f"{REGISTERS}, figure 8",
    definition=lambda options: (
        f"Outliers: the share of patches that {options.rule} flags, applied to each model by itself, and the "
        "largest norm over the median, as in outliers-by-registers. Scores: the numbers of frozen-tasks, "
        "those that evaluate --task=NAME has written for the same step and parameters of the run, the newest "
        "of each task; k-NN is measured from the features of the report where there is none. Scores "
        "of other images or by other means are not drawn. Of several steps of a run the last is used."
    ),
    tables={
        _TABLE: "model | step | registers | {rule}, % | largest norm / median | "
        + " | ".join(f"{TASK_NUMBERS[task].what} | standard error of {task}" for task in OF_FEATURES)
    },
    measure=_measure,
    features=("norms_LxT", FROZEN),
    trains=True,
    draw=_draw,
    arrange=_comparable,
    across=_across,
    opens=_TABLE,
    sums_up=_sums_up,
)
