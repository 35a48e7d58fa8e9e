"""Norms of patches by the number of parameters of the model. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.report.figures import BLUE, GREY, RED
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject


def by_size(subjects: list[Subject], options: Options) -> Result:
    """Norms of patches of models by their number of parameters, the smallest first."""
    subjects = sorted(subjects, key=lambda subject: subject.num_parameters)
    rows, thresholds = [], []
    for subject in subjects:
        norm_BxP, outliers = subject.patch_norms(), subject.outliers(options.rule)
        median, p99 = np.quantile(norm_BxP, [0.5, 0.99])
        numbers = (float(median), float(p99), float(norm_BxP.max()), 100 * outliers.share)
        rows.append((subject.name, subject.num_parameters, *numbers))
        thresholds.append(outliers.threshold)
    columns = ("model", "parameters", "median", "p99", "max", f"{options.rule}, %")
    result = Result(
        definition="L2 norms of the patches that the last block leaves, before the final norm; all of a "
        "model's parameters are counted. The last column is the share of patches that the rule flags.",
        tables=[Table(title="Norms by size", columns=columns, rows=rows)],
        pictures=[
            Picture(
                name="sizes",
                caption="Norms of patches, the smallest model first. Widths are log(1 + patches) in a bin, "
                "so that few large norms are seen too; all patches count. Line: median; dashes: threshold.",
                figure=_draw_sizes(subjects, thresholds),
            )
        ],
    )
    if len({subject.num_parameters for subject in subjects}) < 2:
        result.gaps.append("all models are of one size; give some of several with --checkpoint")
    return result


def _draw_sizes(subjects: list[Subject], thresholds: list[float | None]) -> Figure:
    norms = (subject.patch_norms() for subject in subjects)
    ends = [(norm_BxP[norm_BxP > 0].min(initial=np.inf), norm_BxP.max()) for norm_BxP in norms]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    edges = np.geomspace(low / 1.01, high * 1.01, 120) if 0 < low <= high else np.geomspace(0.1, 10, 120)
    middles, half = np.sqrt(edges[1:] * edges[:-1]), 0.42
    figure = Figure(figsize=(max(4.5, 1.3 * len(subjects) + 0.8), 4.0), layout="constrained")
    axes = figure.subplots()
    for place, (subject, threshold) in enumerate(zip(subjects, thresholds, strict=True)):
        norm_BxP = subject.patch_norms()
        width = np.log1p(np.histogram(norm_BxP, edges)[0])
        width *= half / max(width.max(), 1.0)
        axes.fill_betweenx(middles, place - width, place + width, color=BLUE, alpha=0.6, lw=0, step="mid")
        axes.hlines(np.median(norm_BxP), place - half, place + half, color=GREY)
        if threshold is not None and edges[0] / 2 < threshold < 2 * edges[-1]:
            axes.hlines(threshold, place - half, place + half, color=RED, ls="--", lw=0.9)
    labels = [f"{subject.name}\n{subject.num_parameters:,}" for subject in subjects]
    is_long = max(len(subject.name) for subject in subjects) > 14
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    if is_long:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set(yscale="log", ylabel="norm of patches", xlim=(-0.6, len(subjects) - 0.4))
    return figure
