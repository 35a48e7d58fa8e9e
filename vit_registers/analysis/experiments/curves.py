"""curves: losses and accuracies of a run over its steps. No JAX."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import color_of
from vit_registers.analysis.report.figures import legend_above, legend_name, new_axes
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.errors import DataError
from vit_registers.runs.metrics_log import read_records

# labels of axes and factors, by metric
_PANELS = {"loss": ("loss", 1.0), "top1": ("top-1, %", 100.0), "top1_k20": ("20-NN top-1, %", 100.0)}
_WINDOW = 0.1  # of a run, that training curves are smoothed over
Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]  # (steps, values) by name


class RunValues(NamedTuple):
    """Rows.values of a model, which are those of its whole run."""

    run: epath.Path | None
    shown: Any  # what the figure shows of it


def one_per_run(found: Found) -> Found:
    """The last of the models of each run, which have the same metrics."""
    return [*{str(one.values.run): one for one in found}.values()]


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    try:
        records, damage = ([], None) if subject.run is None else read_records(subject.run)
    except DataError as error:
        records, damage = [], str(error)
    if not records:
        missing = "no metrics.jsonl: it is not a run, or a converted one"
        return Gap(f"{subject.name}: {missing if damage is None else damage}")
    metrics = series(records)
    text, last, count = "no loss was evaluated", None, 0
    evaluated = [name for name in metrics if name.endswith("/loss") and not name.startswith("train/")]
    if evaluated:
        steps, values = metrics[evaluated[0]]
        last, count, name = float(values[-1]), len(values), evaluated[0].removesuffix("/loss")
        text = f"the loss of {name} is {number(last)} after step {int(steps[-1]):,}"
    elif (neighbours := metrics.get("knn/top1_k20")) is not None:
        steps, values = neighbours
        count, share = len(values), number(100 * float(values[-1]), "%")
        text = f"the 20-NN top-1 of cls is {share} after step {int(steps[-1]):,}"
    return Rows(
        tables={
            "Last values": [
                _last(name, int(steps[-1]), float(values[-1]))
                for name, (steps, values) in metrics.items()
                if name.endswith(("/loss", "/top1", "/top5", "/top1_k20"))
            ]
        },
        text=text,
        compared=last,
        count=counted(count, "evaluation"),
        values=RunValues(subject.run, metrics),
        gaps=[] if damage is None else [f"{subject.name}: {damage}"],
    )


def _last(name: str, step: int, value: float) -> tuple[str, int, float]:
    """A row of the table, with accuracies in %."""
    return (name, step, value) if name.endswith("/loss") else (f"{name}, %", step, 100 * value)


def series(records: Sequence[Mapping[str, float]]) -> Metrics:
    """(steps, values) of each metric in the records of a run."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                found.setdefault(name, []).append((int(record["step"]), value))
    arrays = {name: np.array(points, float) for name, points in found.items()}
    return {name: (points_Nx2[:, 0], points_Nx2[:, 1]) for name, points_Nx2 in arrays.items()}


def _draw(found: Found) -> Pictures:
    for kind, (ylabel, factor) in _PANELS.items():
        figure, axes = new_axes()
        for one in found:
            color = color_of(one.place)
            for name, (steps, values) in one.values.shown.items():
                group, _, key = name.rpartition("/")
                if key == kind and group == "train":
                    axes.plot(steps, factor * values, color=color, lw=0.6, alpha=0.3)
                    label = legend_name(f"{one.name}: train")
                    axes.plot(steps, factor * smoothed(values), color=color, lw=1.3, label=label)
                elif key == kind:
                    style = "s--" if group.endswith(("_ema", "/patch")) else "o-"
                    label = legend_name(f"{one.name}: {group}")
                    axes.plot(steps, factor * values, style, color=color, ms=5, label=label)
        axes.set(xlabel="step", ylabel=ylabel)
        axes.grid(alpha=0.3)
        legend_above(axes)
        caption = (
            f"{kind} of each run by step. Thin: single training batches; line: their mean over "
            f"{100 * _WINDOW:g} % of the run around each; points: evaluations."
        )
        if axes.lines:
            yield Picture(name=f"curves-{kind}", caption=caption, figure=figure, is_headline=kind == "loss")


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean over a window of _WINDOW of the values around each; at the ends of as many as there are."""
    half = int(len(values) * _WINDOW / 2)
    ends = np.arange(len(values))
    low, high = np.maximum(ends - half, 0), np.minimum(ends + half + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return (sums[high] - sums[low]) / (high - low)


EXPERIMENT = Experiment(
    question="How did training go?",
    answers="the runs' own metrics",
    definition="Losses and top-1 of the run: of single training batches, which may be mixed, and of "
    "evaluations. k-NN accuracies are of cls (knn) and of the mean of the patches (knn/patch).",
    tables={"Last values": "model | metric | last step | value"},
    measure=_measure,
    draw=_draw,
    arrange=one_per_run,
    compares="last evaluated loss",
)
