"""How training went: losses and accuracies of a run over its steps."""

from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.errors import DataError
from vit_registers.runs.metrics_log import read_records


def curves(subjects: list[Subject], options: Options) -> Result:
    """Losses and accuracies over the steps of the runs."""
    result = Result(
        definition="Losses and top-1 of the run: of single training batches, which may be mixed, and of "
        "evaluations."
    )
    rows = []
    for subject in subjects:
        try:
            records, damage = ([], None) if subject.run is None else read_records(subject.run)
        except DataError as error:
            records, damage = [], str(error)
        if damage is not None:
            result.gaps.append(f"{subject.name}: {damage}")
        elif not records:
            result.gaps.append(f"{subject.name}: no metrics.jsonl, as it is no run, or a converted one")
        if not records:
            continue
        metrics = figures.metric_series(records)
        rows += [
            (subject.name, name, int(steps[-1]), float(values[-1]))
            for name, (steps, values) in metrics.items()
            if name.endswith(("/loss", "/top1", "/top5"))
        ]
        result.pictures.append(
            Picture(name=f"curves-{subject.name}", caption=subject.name, figure=figures.draw_curves(metrics))
        )
    if rows:
        columns = ("model", "metric", "last step", "value")
        result.tables.append(Table(title="Last values", columns=columns, rows=rows))
    return result
