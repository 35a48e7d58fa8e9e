"""The table of a sweep, from the result.json files of its runs: one row per cell, over seeds.

    python -m vit_registers.tabulate --config=configs/digits.py --workdir=runs/sweep [--csv=table.csv]

Prints Markdown. --which=best takes the best evaluation of each run instead of the last, --metric another
evaluator than the first. Give the settings that the sweep was given. A config file may say more:
`label(point, arg)`, the columns of a cell as {column: text}; `baseline(arg)`, the labels of the cell that
others are compared with; `published(arg)`, a list of (labels, value, source). It can be printed before any
run is finished.
"""

from vit_registers import startup

startup.begin(__name__)

import collections
import csv
import dataclasses
import signal
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from vit_registers import cli
from vit_registers.errors import ConfigError
from vit_registers.runs.results import non_finite_of
from vit_registers.runs.sweeps import SEED, Run, Sweep, count_parameters, read_result, read_sweep, short_keys

Labels = Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of a sweep that differ in their seed alone, and the results of those that are finished."""

    labels: Labels
    runs: tuple[Run, ...]
    results: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What the table says of a cell. None: undefined, such as a deviation of one run."""

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


# --- reading ---------------------------------------------------------------------------------


def read_cells(sweep: Sweep) -> list[Cell]:
    """The cells of a sweep, in its order. Raises ConfigError where labels do not tell two of them apart."""
    short = short_keys([run.point for run in sweep.runs])
    label = getattr(sweep.module, "label", None) or (
        lambda point, arg: {short[key]: str(value) for key, value in point.items()}
    )
    grouped: list[tuple[dict[str, Any], list[Run]]] = []
    for run in sweep.runs:
        point = {key: value for key, value in run.point.items() if key != SEED}
        found = next((runs for other, runs in grouped if other == point), None)
        if found is None:
            grouped.append((point, [run]))
        else:
            found.append(run)
    cells = []
    for point, runs in grouped:
        labels = dict(label(point, sweep.arg))
        if any(cell.labels == labels for cell in cells):
            raise ConfigError(f"{sweep.config}: label() says {_label_text(labels)} of two cells")
        results = [result for run in runs if (result := read_result(run)) is not None]
        cells.append(Cell(labels=labels, runs=tuple(runs), results=tuple(results)))
    return cells


def _label_text(labels: Labels) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items() if value) or "default"


def find_cell(cells: Sequence[Cell], labels: Labels | None, config: str) -> Cell:
    """The cell with these labels, the first for None. Raises ConfigError where there is none."""
    if labels is None:
        return cells[0]
    found = [cell for cell in cells if cell.labels == labels]
    if not found:
        known = "; ".join(_label_text(cell.labels) for cell in cells)
        raise ConfigError(f"{config}: baseline() says {_label_text(labels)}, which no cell is: {known}")
    return found[0]


def default_metric(cells: Sequence[Cell]) -> str:
    """The name of the first evaluator."""
    for cell in cells:
        for result in cell.results:
            if result["best"] is not None:
                return result["best"]["evaluator"]
    return cells[0].runs[0].config.data.eval_split


def metric_values(cell: Cell, metric: str, which: str) -> list[float]:
    """The metric that ranks checkpoints, of each finished run of a cell whose evaluation is finite.

    A fraction is in percent. `metric` is the evaluator, `which` its last or its best evaluation.

    Raises ConfigError for an unknown evaluator.
    """
    values, ranked = [], cell.runs[0].best
    for result in cell.results:
        last, best = result["metrics"], result["best"]
        if f"{metric}/{ranked.metric}" not in last:
            end = f"/{ranked.metric}"
            known = ", ".join(key.removesuffix(end) for key in last if key.endswith(end))
            raise ConfigError(f"--metric={metric}: {_label_text(cell.labels)} has only {known or 'none'}")
        metrics = last if which == "last" else best and best["metrics"]
        if metrics and not non_finite_of(metrics, metric):
            values.append((100.0 if ranked.is_fraction else 1.0) * metrics[f"{metric}/{ranked.metric}"])
    return values


def left_out(cells: Sequence[Cell], metric: str, which: str) -> list[str]:
    """A line for each cell with finished runs of which the evaluation is not finite."""
    numbers = [len(cell.results) - len(metric_values(cell, metric, which)) for cell in cells]
    return [
        f"Left out, as the evaluation is not finite: {number} of {len(cell.results)} runs of "
        f"{_label_text(cell.labels)}"
        for cell, number in zip(cells, numbers, strict=True)
        if number
    ]


# --- statistics ------------------------------------------------------------------------------


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None where there are too few values."""
    return (
        statistics.fmean(values) if values else None,
        statistics.stdev(values) if len(values) > 1 else None,
    )


def compare(values: Sequence[float], baseline: Sequence[float]) -> tuple[float | None, float | None]:
    """The difference of the means, and the same over sqrt((s1^2 + s2^2) / 2); None where undefined."""
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


# --- rendering -------------------------------------------------------------------------------


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def column_title(cells: Sequence[Cell], metric: str, which: str) -> str:
    """What the means of the table are, such as 'test top-1 in % (last)'."""
    ranked = cells[0].runs[0].best
    return f"{metric} {ranked.label}{' in %' if ranked.is_fraction else ''} ({which})"


def columns(rows: Sequence[Row]) -> list[str]:
    """The label columns of all rows, in order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.labels))


def markdown(rows: Sequence[Row], baseline: Labels, *, title: str) -> str:
    """The table in Markdown; `title` is that of the column of means."""
    has_published = any(row.published is not None for row in rows)
    names = columns(rows)
    head = [*names, title, "runs", "difference", "in std", "parameters", "time, s"]
    lines = [[*head, "published", "source"] if has_published else head]
    lines.append(["---" if i < len(names) else "---:" for i in range(len(lines[0]))])
    for row in rows:
        is_base = row.labels == baseline
        is_whole = row.num_runs == row.num_wanted
        line = [
            *(row.labels.get(name, "") for name in names),
            "-" if row.mean is None else f"{row.mean:.2f} ± {_show(row.std, '.2f')}",
            str(row.num_runs) if is_whole else f"{row.num_runs} of {row.num_wanted}",
            "baseline" if is_base else _show(row.difference, "+.2f"),
            "" if is_base else _show(row.difference_std, "+.2f"),
            f"{row.parameters:,}",
            _show(row.time_s, ".1f"),
        ]
        lines.append([*line, _show(row.published, "g"), row.source or ""] if has_published else line)
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def _counted(values: Sequence[str]) -> str:
    """The distinct values, with how many runs have each where there are several."""
    counts = collections.Counter(values)
    return "; ".join(f"{value} ({n} runs)" if len(counts) > 1 else value for value, n in counts.items())


def notes(
    cells: Sequence[Cell],
    baseline: Cell,
    published: Sequence[tuple[Labels, float, str]],
    *,
    config: str,
    which: str,
) -> str:
    """What has to be known to read the table: definitions, and what the runs were made with."""
    results = [result for cell in cells for result in cell.results]
    wanted = sum(len(cell.runs) for cell in cells)
    platforms = [result["platform"] for result in results]
    versions = [", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results]
    ranked = cells[0].runs[0].best
    best = (
        f" Best is the {'highest' if ranked.is_higher_better else 'lowest'} {ranked.label} of a run's "
        "evaluations by its first evaluator, chosen on that very split."
    )
    lines = [
        "± is the sample standard deviation s over runs of different seeds (n - 1)."
        + (best if which == "best" else " Last is the evaluation after the last step."),
        f"Difference: mean minus that of the baseline ({_label_text(baseline.labels)}), in points; in std: "
        "divided by sqrt((s² + s_baseline²) / 2). -: undefined, for want of runs or of spread.",
        f"Config: {config}; {len(results)} of {wanted} runs finished; "
        f"{sum(result['time_s'] for result in results):,.0f} s of training in all.",
        "Commit: " + _counted([result["commit"] or "unknown" for result in results]),
        "Devices: " + _counted([f"{p['count']} x {p['device_kind']} ({p['platform']})" for p in platforms]),
        "Versions: " + _counted(versions),
    ]
    for labels, percent, source in published:
        if all(cell.labels != labels for cell in cells):
            lines.append(
                f"Published, but no cell of this sweep: {_label_text(labels)}: {percent:g} ({source})"
            )
    return "\n\n".join(lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with all digits; what is undefined is empty."""
    names = columns(rows)
    fields = [field.name for field in dataclasses.fields(Row) if field.name != "labels"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *fields])
        for row in rows:
            writer.writerow([row.labels.get(name, "") for name in names] + [getattr(row, f) for f in fields])


def main() -> None:
    """The command line."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    values = flags.FLAGS
    sweep = read_sweep(cli.read_config())
    cells = read_cells(sweep)
    baseline = find_cell(cells, sweep.call("baseline", None), sweep.config)
    published = sweep.call("published", [])
    metric = values.metric or default_metric(cells)
    rows = make_rows(cells, baseline, published, metric=metric, which=values.which)
    print(markdown(rows, baseline.labels, title=column_title(cells, metric, values.which)))
    print("\n" + notes(cells, baseline, published, config=sweep.config, which=values.which))
    for line in left_out(cells, metric, values.which):
        print("\n" + line)
    if values.csv is not None:
        path = Path(values.csv).expanduser()
        cli.writable_folder(str(path.parent), "--csv")
        write_csv(rows, path)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of all run folders.")
    flags.DEFINE_string("csv", None, "Also write the table, with all digits, to this file.")
    flags.DEFINE_enum("which", "last", ["last", "best"], "Which evaluation of a run.")
    flags.DEFINE_string("metric", None, "Which evaluator; the first, data.eval_split, if not given.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
