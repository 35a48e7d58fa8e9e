"""How norms, outliers and registers change over the steps of a run. No JAX."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.experiments.attention_grids import mean_maps
from vit_registers.analysis.experiments.run_steps import by_run
from vit_registers.analysis.measures.focus import map_similarity
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, legend_name, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

_COLORS = (BLUE, ORANGE, GREEN, GREY)


def over_training(subjects: list[Subject], options: Options) -> Result:
    """Norms of patches and the likeness of registers at each step of the runs."""
    grouped, gaps = by_run(subjects)
    runs = {run: [(one.step, _row(one, options)) for one in steps] for run, steps in grouped.items()}
    result = Result(
        definition="Norms of the patches that the last block leaves, before the final norm, and the mean "
        "cosine between the attention maps of two registers on the same image, for each checkpoint of a run "
        "that was given (RUN@all takes all).",
        gaps=gaps,
    )
    if not runs:
        return result
    rows = [(run, step, *row) for run, steps in runs.items() for step, row in steps]
    result.tables.append(
        Table(
            title="Over training",
            columns=(
                "run",
                "step",
                "median",
                "p99",
                "max",
                "kurtosis",
                f"{options.rule}, %",
                "cosine between registers",
            ),
            rows=rows,
        )
    )
    result.pictures.append(Picture(name="steps", caption="Norms of patches by step.", figure=_draw(runs)))
    return result


def _row(subject: Subject, options: Options) -> tuple:
    norm_BxP = np.asarray(subject.patch_norms(), np.float64)
    median, p99 = np.quantile(norm_BxP, [0.5, 0.99])
    likeness = None
    if subject.layout.num_registers > 1:
        first = int(subject.layout.has_cls)
        maps = (mean_maps(subject, images)[:, first:] for images in in_parts(len(norm_BxP)))
        likeness = summarize(np.concatenate([map_similarity(maps_BxRxHxW) for maps_BxRxHxW in maps])).mean
    kurtosis = float(stats.kurtosis(norm_BxP, axis=None)) if norm_BxP.std() > 0 else None
    flagged = 100 * subject.outliers(options.rule).share
    return float(median), float(p99), float(norm_BxP.max()), kurtosis, flagged, likeness


def _draw(runs: dict[str, list[tuple[int, tuple]]]) -> Figure:
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (run, steps) in enumerate(runs.items()):
        color = _COLORS[i % len(_COLORS)]
        at = [step for step, _ in steps]
        for place, (name, style) in enumerate((("median", "-"), ("p99", "--"), ("max", ":"))):
            values = [row[place] for _, row in steps]
            axes.plot(at, values, style, marker="o", ms=3, color=color, label=legend_name(f"{run}: {name}"))
    largest = [row[2] for steps in runs.values() for _, row in steps]
    axes.set(xlabel="step", ylabel="norm", yscale=scale_for(largest))
    axes.legend(frameon=False, fontsize=7)
    return figure
