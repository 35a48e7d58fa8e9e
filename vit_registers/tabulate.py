"""The table of a sweep, from the result.json files of its runs: one row per cell, over seeds.

    vit-registers tabulate --config=digits --workdir=runs/sweep [--csv=table.csv]

Prints Markdown. --which=best takes the best evaluation of each run instead of the last, --metric another
evaluator than the first. Give the same settings as to the sweep. A config file may define functions:
`label(point, arg)`, the columns of a cell as {column: text}; `baseline(arg)`, the labels of the cell that
others are compared with; `published(arg)`, a list of (labels, value, source); `comparisons(arg)`, pairs of
labels, whose cells a second table compares, paired by seed. Runs may be unfinished. Those
that the work directory lacks are read from --finished=FILE.csv of the sweep.

`python -m vit_registers.tabulate` is the same command.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    from vit_registers import cli

    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of all run folders.")
    flags.DEFINE_string("finished", None, "CSV file of finished runs, as that of vit_registers.sweep.")
    flags.DEFINE_string("csv", None, "Also write the table, with all digits, to this file.")
    flags.DEFINE_enum("which", "last", ["last", "best"], "Which evaluation of a run.")
    flags.DEFINE_string("metric", None, "Which evaluator; the first, data.eval_split, if not given.")
    flags.mark_flags_as_required(["config", "workdir"])


startup.begin(__name__, define_flags)

import collections
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vit_registers import cli
from vit_registers.errors import ConfigError
from vit_registers.runs.finished_runs import read_finished
from vit_registers.runs.sweep_cells import (
    Cell,
    Labels,
    Row,
    default_metric,
    find_cell,
    label_text,
    left_out,
    make_rows,
    ranked_by,
    read_cells,
)
from vit_registers.runs.sweep_differences import PairedDifference, paired_differences
from vit_registers.runs.sweeps import read_sweep
from vit_registers.storage import files, paths


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def column_title(cells: Sequence[Cell], metric: str, which: str) -> str:
    """The title of the column of means, such as 'test top-1 in % (last)'."""
    ranked = ranked_by(cells)
    return f"{metric} {ranked.label}{' in %' if ranked.is_fraction else ''} ({which})"


def columns(rows: Sequence[Row]) -> list[str]:
    """The label columns of all rows, in order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.labels))


def markdown(rows: Sequence[Row], baseline: Labels, *, title: str, decimals: int = 2) -> str:
    """The table in Markdown; `title` is that of the column of means, which have `decimals`."""
    has_published = any(row.published is not None for row in rows)
    names = columns(rows)
    head = [*names, title, "runs", "difference", "in std", "parameters", "time, s"]
    lines = [[*head, "published", "source"] if has_published else head]
    form = f".{decimals}f"
    lines.append(["---" if i < len(names) else "---:" for i in range(len(lines[0]))])
    for row in rows:
        is_base, runs = row.labels == baseline, str(row.num_runs)
        line = [
            *(row.labels.get(name, "") for name in names),
            "-" if row.mean is None else f"{row.mean:{form}} ± {_show(row.std, form)}",
            runs if row.num_runs == row.num_wanted else f"{runs} of {row.num_wanted}",
            "baseline" if is_base else _show(row.difference, f"+{form}"),
            "" if is_base else _show(row.difference_std, "+.2f"),
            f"{row.parameters:,}",
            _show(row.time_s, ".1f"),
        ]
        lines.append([*line, _show(row.published, "g"), row.source or ""] if has_published else line)
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def markdown_differences(differences: Sequence[PairedDifference], *, unit: str, decimals: int = 2) -> str:
    """The table of differences in Markdown, with what it means; `unit` is that of the differences."""
    form = f".{decimals}f"
    lines = [
        ["cell", "minus", f"difference, {unit}", "95 % interval", "p", "seeds"],
        ["---", "---", *["---:"] * 4],
    ]
    for one in differences:
        ends = "-"
        if one.mean is not None and one.half_width is not None:
            ends = f"{one.mean - one.half_width:+{form}} to {one.mean + one.half_width:+{form}}"
        shown = _show(one.mean, f"+{form}"), ends, _show(one.p, ".2g"), str(one.num_seeds)
        lines.append([label_text(one.labels), label_text(one.other), *shown])
    table = "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)
    return (
        f"{table}\n\nDifferences are paired by seed; intervals and p are those of the paired t-test. No p is "
        f"corrected for the {len(differences)} comparisons: by Bonferroni's rule, one below "
        f"{0.05 / max(len(differences), 1):.2g} is significant at 5 %."
    )


def _counted(values: Sequence[str]) -> str:
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
    """The paragraphs below the table: definitions, and the code, devices and versions of the runs."""
    results = [result for cell in cells for result in cell.results]
    wanted = sum(len(cell.runs) for cell in cells)
    platforms = [result["platform"] for result in results]
    versions = [", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results]
    ranked = ranked_by(cells)
    best = (
        f" Best is the {'highest' if ranked.is_higher_better else 'lowest'} {ranked.label} of a run's "
        "evaluations by its first evaluator, chosen on the same split."
    )
    unit = "points" if ranked.is_fraction else ranked.label
    lines = [
        "± is the sample standard deviation s over runs of different seeds (n - 1)."
        + (best if which == "best" else " Last is the evaluation after the last step."),
        f"Difference: mean minus that of the baseline ({label_text(baseline.labels)}), in {unit}; in std: "
        "divided by sqrt((s² + s_baseline²) / 2). -: undefined, as there are too few runs or no spread.",
        f"Config: {config}; {len(results)} of {wanted} runs finished; "
        f"{sum(result['time_s'] for result in results):,.0f} s of training in total.",
        "Commit: " + _counted([result["commit"] or "unknown" for result in results]),
        "Devices: " + _counted([f"{p['count']} x {p['device_kind']} ({p['platform']})" for p in platforms]),
        "Versions: " + _counted(versions),
    ]
    there = [cell.labels for cell in cells]
    for labels, percent, source in published:
        if labels not in there:
            found = f"{label_text(labels)}: {percent:g} ({source})"
            lines.append(f"Published, but no cell of this sweep: {found}")
    return "\n\n".join(lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with all digits; undefined values are empty."""
    names = columns(rows)
    fields = [field.name for field in dataclasses.fields(Row) if field.name != "labels"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *fields])
        for row in rows:
            writer.writerow([row.labels.get(name, "") for name in names] + [getattr(row, f) for f in fields])


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    finished = read_finished(values.finished)
    if finished is None and not files.is_folder(paths.folder(values.workdir)):
        raise ConfigError(f"--workdir={values.workdir}: there is no such folder: give that of the sweep")
    sweep = read_sweep()
    cells = read_cells(sweep, finished)
    base = sweep.call("baseline", None)
    baseline = cells[0] if base is None else find_cell(cells, base, sweep.config, "baseline()")
    published = sweep.call("published", [])
    metric = values.metric or default_metric(cells)
    rows = make_rows(cells, baseline, published, metric=metric, which=values.which)
    title, is_fraction = column_title(cells, metric, values.which), ranked_by(cells).is_fraction
    print(markdown(rows, baseline.labels, title=title, decimals=2 if is_fraction else 3))
    if pairs := sweep.call("comparisons", []):
        unit = "points" if is_fraction else ranked_by(cells).label
        found = paired_differences(cells, pairs, config=sweep.config, metric=metric, which=values.which)
        print("\n" + markdown_differences(found, unit=unit, decimals=2 if is_fraction else 3))
    print("\n" + notes(cells, baseline, published, config=sweep.config, which=values.which))
    for line in left_out(cells, metric, values.which):
        print("\n" + line)
    if values.csv is not None:
        path = Path(values.csv).expanduser()
        cli.check_local(values.csv, "--csv")
        cli.local_folder(str(path.parent), "--csv")
        write_csv(rows, path)


if __name__ == "__main__":
    cli.run(main)
