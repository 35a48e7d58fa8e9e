"""How outliers and registers change over the steps of a run."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.focus import map_similarity
from vit_registers.analysis.pictures import BLUE, GREEN, GREY, ORANGE
from vit_registers.analysis.section import Picture, Section, Table
from vit_registers.analysis.severity import summarize
from vit_registers.analysis.subject import Options, Subject

_COLORS = (BLUE, ORANGE, GREEN, GREY)


def over_training(subjects: list[Subject], options: Options) -> Section:
    """Norms of patches and the likeness of registers at each step of the runs."""
    runs: dict[str, list[tuple[int, tuple]]] = {}
    section = Section(
        definition="Norms of the patches that the last block leaves, before the final norm, and the mean "
        "cosine between the attention maps of two registers on the same image, for each checkpoint of a run "
        "that was given (RUN@all takes all)."
    )
    for subject in subjects:
        if subject.run is None:
            section.gaps.append(f"{subject.name}: not a run, so that it has no steps")
        else:
            runs.setdefault(str(subject.run), []).append((subject.step, _row(subject, options)))
    rows = []
    for run, steps in runs.items():
        if len(steps) < 2:
            section.gaps.append(f"{run}: one step only; RUN@all shows all that are kept")
        rows += [(run, step, *row) for step, row in sorted(steps)]
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
        where = subject.layout.registers
        weights = subject.store.read("attention_NxExT")[:, :, where, subject.layout.patches].mean(1)
        maps = weights.reshape(*weights.shape[:2], *subject.layout.patch_grid)
        likeness = summarize(map_similarity(maps)).mean
    kurtosis = float(stats.kurtosis(norm_BxP, axis=None)) if norm_BxP.std() > 0 else None
    flagged = 100 * subject.outliers(options.rule).share
    return float(median), float(p99), float(norm_BxP.max()), kurtosis, flagged, likeness


def _draw(runs: dict[str, list[tuple[int, tuple]]]) -> Figure:
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, (run, steps) in enumerate(runs.items()):
        color = _COLORS[i % len(_COLORS)]
        at = [step for step, _ in sorted(steps)]
        for place, (name, style) in enumerate((("median", "-"), ("p99", "--"), ("max", ":"))):
            values = [row[place] for _, row in sorted(steps)]
            axes.plot(at, values, style, marker="o", ms=3, color=color, label=f"{run}: {name}")
    axes.set(xlabel="step", ylabel="norm", yscale="log")
    if runs:
        axes.legend(frameon=False, fontsize=7)
    return figure
