"""The cells of a sweep, whose runs differ only in their seed, and statistics of their results."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vit_registers.errors import ConfigError
from vit_registers.models.params import count_parameters
from vit_registers.objectives.base import Best, find_non_finite
from vit_registers.runs.finished_runs import FinishedRuns
from vit_registers.runs.results import metrics_of
from vit_registers.runs.sweeps import SEED, Sweep, SweepRun, read_result, short_keys

Labels = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs of a sweep that differ only in their seed, and the results of the finished ones."""

    labels: Labels
    runs: tuple[SweepRun, ...]
    result_by_seed: Mapping[int, Mapping[str, Any]]

    @property
    def results(self) -> tuple[Mapping[str, Any], ...]:
        """The results of the finished runs."""
        return tuple(self.result_by_seed.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The row of a cell in the table. None: undefined, such as the deviation of one run."""

    labels: Labels
    mean: float | None  # percent where the metric is a fraction
    std: float | None
    num_runs: int
    num_wanted: int
    difference: float | None  # to the baseline, in points
    difference_std: float | None  # in standard deviations
    parameters: int
    time_s: float | None  # mean of a run
    published: float | None  # in the unit of the mean
    source: str | None


def read_cells(sweep: Sweep, finished: FinishedRuns | None = None) -> list[Cell]:
    """The cells of a sweep, in its order. Results that no run folder has are those of `finished`.

    Raises ConfigError if two cells have the same labels.
    """
    short = short_keys([run.point for run in sweep.runs])
    label = getattr(sweep.module, "label", None) or (
        lambda point, arg: {short[key]: str(value) for key, value in point.items()}
    )
    grouped: list[tuple[dict[str, Any], list[SweepRun]]] = []
    for run in sweep.runs:
        point = {key: value for key, value in run.point.items() if key != SEED}
        for other, runs in grouped:
            if other == point:
                runs.append(run)
                break
        else:
            grouped.append((point, [run]))
    cells = []
    for point, runs in grouped:
        labels = dict(label(point, sweep.arg))
        if any(cell.labels == labels for cell in cells):
            raise ConfigError(f"{sweep.config}: label() returns {label_text(labels)} for two cells")
        found = {run.config.run.seed: _result(run, finished) for run in runs}
        results = {seed: result for seed, result in found.items() if result is not None}
        cells.append(Cell(labels=labels, runs=tuple(runs), result_by_seed=results))
    return cells


def _result(run: SweepRun, finished: FinishedRuns | None) -> Mapping[str, Any] | None:
    found = read_result(run)
    return finished.find(run.config) if found is None and finished is not None else found


def label_text(labels: Labels) -> str:
    """The labels of a cell in one line."""
    return ", ".join(f"{key}={value}" for key, value in labels.items() if value) or "default"


def find_cell(cells: Sequence[Cell], labels: Labels, config: str, source: str) -> Cell:
    """The cell with these labels, which `source` of the config gave. Raises ConfigError if there is none."""
    found = [cell for cell in cells if cell.labels == labels]
    if not found:
        known = "; ".join(label_text(cell.labels) for cell in cells)
        raise ConfigError(f"{config}: {source} returns {label_text(labels)}, which no cell has: {known}")
    return found[0]


def ranked_by(cells: Sequence[Cell]) -> Best:
    """What ranks the evaluations of these runs."""
    best = cells[0].runs[0].best
    found = [result["best"] for cell in cells for result in cell.results if result["best"] is not None]
    return best.among(found[0] if found else ())


def default_metric(cells: Sequence[Cell]) -> str:
    """The name of the first evaluator."""
    found = [result["best"] for cell in cells for result in cell.results if result["best"] is not None]
    return found[0]["evaluator"] if found else cells[0].runs[0].config.data.eval_split


def values_by_seed(cell: Cell, metric: str, which: str) -> dict[int, float]:
    """The metric that ranks checkpoints, of each finished run of a cell with a finite evaluation.

    A fraction is in percent. `metric` is the evaluator; `which` is "last" or "best", its evaluation. Raises
    ConfigError for an unknown evaluator.
    """
    values, ranked = {}, ranked_by([cell])
    end = f"/{ranked.metric}"
    for seed, result in cell.result_by_seed.items():
        last, best = result["metrics"], result["best"]
        if f"{metric}{end}" not in last:
            known = ", ".join(key.removesuffix(end) for key in last if key.endswith(end))
            raise ConfigError(f"--metric={metric}: {label_text(cell.labels)} has only {known or 'none'}")
        metrics = metrics_of(last if which == "last" else best["metrics"] if best else {}, metric)
        value = metrics.get(ranked.metric)
        if value is not None and not find_non_finite(metrics):
            values[seed] = (100.0 if ranked.is_fraction else 1.0) * value
    return values


def metric_values(cell: Cell, metric: str, which: str) -> list[float]:
    """The values of `values_by_seed`."""
    return list(values_by_seed(cell, metric, which).values())


def left_out(cells: Sequence[Cell], metric: str, which: str) -> list[str]:
    """A line for each cell that has finished runs with an evaluation that is not finite."""
    return [
        f"Left out, as the evaluation is not finite: {number} of {len(cell.results)} runs of "
        f"{label_text(cell.labels)}"
        for cell in cells
        if (number := len(cell.results) - len(metric_values(cell, metric, which)))
    ]


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None for too few values."""
    return (
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def compare(values: Sequence[float], baseline: Sequence[float]) -> tuple[float | None, float | None]:
    """The difference of the means, and that difference over sqrt((s1^2 + s2^2) / 2); None: undefined."""
    (mean, std), (base_mean, base_std) = mean_std(values), mean_std(baseline)
    if mean is None or base_mean is None:
        return None, None
    if std is None or base_std is None or (std == 0.0 and base_std == 0.0):
        return mean - base_mean, None
    return mean - base_mean, (mean - base_mean) / ((std**2 + base_std**2) / 2.0) ** 0.5


def make_rows(
    cells: Sequence[Cell],
    baseline: Cell,
    published: Sequence[tuple[Labels, float, str]],
    *,
    metric: str,
    which: str,
) -> list[Row]:
    """The rows of the table, in the order of the cells."""
    base = metric_values(baseline, metric, which)
    rows = []
    for cell in cells:
        values = metric_values(cell, metric, which)
        mean, std = mean_std(values)
        difference, in_std = (None, None) if cell is baseline else compare(values, base)
        known = next(((p, source) for labels, p, source in published if labels == cell.labels), (None, None))
        rows.append(
            Row(
                labels=cell.labels,
                mean=mean,
                std=std,
                num_runs=len(values),
                num_wanted=len(cell.runs),
                difference=difference,
                difference_std=in_std,
                parameters=count_parameters(cell.runs[0].config.model),
                time_s=mean_std([result["time_s"] for result in cell.results])[0],
                published=known[0],
                source=known[1],
            )
        )
    return rows
