"""How outliers, registers and attention change over the steps of a run. No JAX."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.experiments.attention_grids import draw_maps, mean_maps, queries
from vit_registers.analysis.measures.focus import focus, map_similarity
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, legend_name, scale_for
from vit_registers.analysis.report.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

_COLORS = (BLUE, ORANGE, GREEN, GREY)
_MOST_STEPS = 10  # that a grid of maps shows


def by_run(subjects: list[Subject]) -> tuple[dict[str, list[Subject]], list[str]]:
    """The subjects of each run, the oldest step first; and gaps: what is no run, runs of one step only."""
    runs: dict[str, list[Subject]] = {}
    gaps = []
    for subject in subjects:
        if subject.run is None:
            gaps.append(f"{subject.name}: not a run, so that it has no steps")
        else:
            runs.setdefault(str(subject.run), []).append(subject)
    for run, steps in runs.items():
        steps.sort(key=lambda subject: subject.step)
        if len(steps) < 2:
            gaps.append(f"{run}: one step only; RUN@all shows all that are kept")
    return runs, gaps


def over_training(subjects: list[Subject], options: Options) -> Section:
    """Norms of patches and the likeness of registers at each step of the runs."""
    grouped, gaps = by_run(subjects)
    runs = {run: [(one.step, _row(one, options)) for one in steps] for run, steps in grouped.items()}
    section = Section(
        definition="Norms of the patches that the last block leaves, before the final norm, and the mean "
        "cosine between the attention maps of two registers on the same image, for each checkpoint of a run "
        "that was given (RUN@all takes all).",
        gaps=gaps,
    )
    if not runs:
        return section
    rows = [(run, step, *row) for run, steps in runs.items() for step, row in steps]
    section.tables.append(
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
    section.pictures.append(Picture(name="steps", caption="Norms of patches by step.", figure=_draw(runs)))
    return section


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


def attention_over_training(subjects: list[Subject], options: Options) -> Section:
    """What cls and the registers attend to in the first image, at each step of the runs."""
    runs, gaps = by_run(subjects)
    section = Section(
        definition="Attention of the last block in the first image, mean over heads, at each checkpoint of a "
        "run that was given (RUN@all takes all). The share is what the patches get of the softmax; the "
        f"entropy is of the map, divided by its sum. Pictures show {_MOST_STEPS} steps at most.",
        gaps=gaps,
    )
    rows = []
    for run, steps in runs.items():
        if len(steps) < 2:
            continue
        rows += [(run, subject.step, *row) for subject in steps for row in _shares(subject)]
        places = np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))
        shown, first = [steps[place] for place in places], steps[0]
        maps = np.concatenate([mean_maps(subject, slice(0, 1)) for subject in shown])
        image = np.repeat(first.example_NxHxWxC[:1], len(shown), axis=0)
        labels = [f"step {subject.step}" for subject in shown]
        section.pictures.append(
            Picture(
                name=f"steps-{first.name}",
                caption=f"{run}: attention over the first image; each map has its own scale from 0 to the "
                "maximum below it.",
                figure=draw_maps(image, maps, queries(first), labels),
            )
        )
    if rows:
        columns = ("run", "step", "query", "share of patches", "entropy / uniform")
        section.tables.append(Table(title="Attention over training", columns=columns, rows=rows))
    return section


def _shares(subject: Subject) -> list[tuple[str, float, float | None]]:
    """(query, share, entropy) of each map of the first image."""
    maps_ExHxW = mean_maps(subject, slice(0, 1))[0].astype(np.float64)
    share_E, entropy_E = maps_ExHxW.sum(axis=(1, 2)), focus(maps_ExHxW).entropy_share_E
    return [
        (name, float(share_E[i]), float(entropy_E[i]) if entropy_E is not None and share_E[i] else None)
        for i, name in enumerate(queries(subject))
    ]
