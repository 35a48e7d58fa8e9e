"""curves: losses and accuracies of a run over its steps. No JAX."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import BLUE, GREY, ORANGE
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
from vit_registers.errors import DataError
from vit_registers.runs.metrics_log import read_records

_PANELS = {"loss": "loss", "top1": "top-1 accuracy"}  # labels of axes by metric
Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]  # (steps, values) by name


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    try:
        records, damage = ([], None) if subject.run is None else read_records(subject.run)
    except DataError as error:
        records, damage = [], str(error)
    if not records:
        missing = "no metrics.jsonl: it is not a run, or a converted one"
        return Gap(f"{subject.name}: {missing if damage is None else damage}")
    metrics = _series(records)
    text, last, count = "no loss was evaluated", None, 0
    evaluated = [name for name in metrics if name.endswith("/loss") and not name.startswith("train/")]
    if evaluated:
        steps, values = metrics[evaluated[0]]
        last, count, name = float(values[-1]), len(values), evaluated[0].removesuffix("/loss")
        text = f"the loss of {name} is {number(last)} after step {int(steps[-1]):,}"
    return Rows(
        tables={
            "Last values": [
                (name, int(steps[-1]), float(values[-1]))
                for name, (steps, values) in metrics.items()
                if name.endswith(("/loss", "/top1", "/top5"))
            ]
        },
        text=text,
        compared=last,
        count=counted(count, "evaluation"),
        values=metrics,
        gaps=[] if damage is None else [f"{subject.name}: {damage}"],
    )


def _series(records: Sequence[Mapping[str, float]]) -> Metrics:
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                series.setdefault(name, []).append((int(record["step"]), value))
    arrays = {name: np.array(points, float) for name, points in series.items()}
    return {name: (points_Nx2[:, 0], points_Nx2[:, 1]) for name, points_Nx2 in arrays.items()}


def _draw(found: Found) -> Pictures:
    for one in found:
        figure = Figure(figsize=(10, 3.6))
        for axes, (kind, ylabel) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
            for name, (steps, values) in one.values.items():
                group, _, key = name.partition("/")
                if key == kind and group == "train":
                    label = "train, single mixed batches"
                    axes.plot(steps, values, color=GREY, lw=0.8, alpha=0.7, label=label)
                elif key == kind:
                    color = ORANGE if group.endswith("_ema") else BLUE
                    label = f"{group}: {values[-1]:.4g} at the end"
                    axes.plot(steps, values, "o-", color=color, ms=4, label=label)
            axes.set(xlabel="step", ylabel=ylabel)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
        figure.tight_layout()
        yield Picture(name=f"curves-{one.name}", caption=one.name, figure=figure)


EXPERIMENT = Experiment(
    question="How did training go?",
    answers="the runs' own metrics",
    definition="Losses and top-1 of the run: of single training batches, which may be mixed, and of "
    "evaluations.",
    tables={"Last values": "model | metric | last step | value"},
    measure=_measure,
    draw=_draw,
    compares="last evaluated loss",
)
