"""curves: losses and accuracies of a run over its steps. No JAX."""

from collections.abc import Mapping, Sequence

import numpy as np

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.finding import counted, number
from vit_registers.analysis.report.result import Gap, Picture, Rows
from vit_registers.analysis.subject import Options, Subject
from vit_registers.errors import DataError
from vit_registers.runs.metrics_log import read_records


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    try:
        records, damage = ([], None) if subject.run is None else read_records(subject.run)
    except DataError as error:
        records, damage = [], str(error)
    if not records:
        missing = "no metrics.jsonl: it is not a run, or a converted one"
        return Gap(f"{subject.name}: {missing if damage is None else damage}")
    metrics = figures.metric_series(records)
    rows = [
        (subject.name, name, int(steps[-1]), float(values[-1]))
        for name, (steps, values) in metrics.items()
        if name.endswith(("/loss", "/top1", "/top5"))
    ]
    text, last, count = _last_evaluation(metrics)
    return Rows(
        tables={"Last values": rows},
        text=text,
        compared=last,
        count=count,
        values=metrics,
        gaps=[] if damage is None else [f"{subject.name}: {damage}"],
    )


def _last_evaluation(
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> tuple[str, float | None, str]:
    """(clause, value, count) of the last loss that was evaluated, of the first evaluator."""
    for name, (steps, values) in metrics.items():
        if name.endswith("/loss") and not name.startswith("train/"):
            last = float(values[-1])
            text = f"the loss of {name.removesuffix('/loss')} is {number(last)} after step {int(steps[-1]):,}"
            return text, last, counted(len(values), "evaluation")
    return "no loss was evaluated", None, counted(0, "evaluation")


def _draw(found: Sequence[Rows]) -> list[Picture]:
    return [
        Picture(name=f"curves-{one.name}", caption=one.name, figure=figures.draw_curves(one.values))
        for one in found
    ]


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
