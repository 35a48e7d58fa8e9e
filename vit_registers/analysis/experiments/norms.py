"""Norms of tokens: how they are distributed, in which layer and where outliers appear. No JAX."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, RED, scale_for
from vit_registers.analysis.report.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject

RULES = ("quantile:0.98", "std:3", "valley")  # beside the one that was chosen


def distribution(subjects: list[Subject], options: Options) -> Section:
    """Norms after the last block, by token and by outlier rule."""
    return Section(
        definition="L2 norms of the tokens that the last block leaves, before the final norm, which would "
        "shrink the largest; the table has them after it too. Kurtosis is Fisher's (0 for a normal "
        "distribution).",
        tables=[_by_token(subjects), _by_rule(subjects, options)],
        pictures=[_histograms(subjects, options)],
        gaps=_zeros(subjects),
    )


def _zeros(subjects: list[Subject]) -> list[str]:
    """A gap for each model that gives patches of zeros only."""
    return [f"{one.name}: the norms of all patches are 0" for one in subjects if not one.patch_norms().any()]


def _by_token(subjects: list[Subject]) -> Table:
    rows = []
    for subject in subjects:
        before = subject.store.read("norms_LxT")[:, -1]
        after = subject.store.read("final_norms_T")
        for token, where in subject.tokens().items():
            norm_N = np.asarray(before[:, where], np.float64).ravel()
            median, p99 = np.quantile(norm_N, [0.5, 0.99])
            spread = float(stats.kurtosis(norm_N)) if norm_N.std() > 1e-9 * norm_N.mean() else None
            rows.append(
                (
                    subject.name,
                    token,
                    float(norm_N.mean()),
                    float(median),
                    float(p99),
                    float(norm_N.max()),
                    float(p99 / median) if median else None,
                    spread,
                    float(np.median(after[:, where])),
                )
            )
    columns = (
        "model",
        "token",
        "mean",
        "median",
        "p99",
        "max",
        "p99 / median",
        "kurtosis",
        "median after norm",
    )
    return Table(title="Norms by token", columns=columns, rows=rows)


def _by_rule(subjects: list[Subject], options: Options) -> Table:
    rows = []
    for subject in subjects:
        norm_BxP = subject.patch_norms()
        for rule in dict.fromkeys((options.rule, *RULES)):
            found = find(norm_BxP, rule)
            images = float(found.is_outlier_BxP.any(1).mean())
            rows.append((subject.name, rule, found.threshold, 100 * found.share, 100 * images))
    columns = ("model", "rule", "threshold", "patches flagged, %", "images with any, %")
    return Table(title="Outliers by rule", columns=columns, rows=rows)


def _histograms(subjects: list[Subject], options: Options) -> Picture:
    figure = Figure(figsize=(4.2 * len(subjects) + 0.5, 3.2), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        norms = subject.store.read("norms_LxT")[:, -1]
        positive = norms[norms > 0]
        edges = np.geomspace(positive.min(), positive.max() * 1.0001, 80) if len(positive) else 1
        for (token, where), color in zip(_groups(subject).items(), (BLUE, GREEN, ORANGE, GREY), strict=False):
            axes.hist(norms[:, where].ravel(), bins=edges, histtype="step", color=color, label=token)
        threshold = subject.outliers(options.rule).threshold
        if threshold is not None:
            axes.axvline(threshold, color=RED, lw=0.9, ls="--", label=options.rule)
        axes.set(xscale=scale_for(norms), yscale="log", xlabel="norm", ylabel="tokens", title=subject.name)
        axes.legend(frameon=False, fontsize=7)
    return Picture(
        name="histogram",
        caption="Norms of tokens after the last block; the dashed line is the threshold of the rule chosen.",
        figure=figure,
    )


def _groups(subject: Subject) -> dict[str, slice]:
    """Patches first, as they are what is looked at."""
    groups = subject.layout.groups
    return {"patches": groups.pop("patches"), **groups}


def by_layer(subjects: list[Subject], options: Options) -> Section:
    """Norms of patches after each block."""
    rows = []
    figure = Figure(figsize=(4.2 * len(subjects) + 0.5, 3.2), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        norms_BxLxT = subject.store.read("norms_LxT")
        depth = norms_BxLxT.shape[1] - 1
        quantiles = []
        for layer in range(depth + 1):
            norm_BxP = norms_BxLxT[:, layer, subject.layout.patches]
            flagged = find(norm_BxP, options.rule)
            quantiles.append(np.quantile(norm_BxP, [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]))
            median, p99 = np.quantile(norm_BxP, [0.5, 0.99])
            others = [
                float(norms_BxLxT[:, layer, where].mean()) if where.stop > where.start else None
                for where in (subject.layout.cls, subject.layout.registers, subject.layout.summaries)
            ]
            largest = float(norm_BxP.max())
            rows.append(
                (subject.name, layer, float(median), float(p99), largest, 100 * flagged.share, *others)
            )
        _draw_bands(axes, subject, np.array(quantiles), norms_BxLxT)
    columns = (
        "model",
        "block",
        "median",
        "p99",
        "max",
        f"{options.rule}, %",
        "mean of cls",
        "of registers",
        "of summaries",
    )
    return Section(
        definition="L2 norms of the patches: 0 is what goes into the first block, n what block n leaves. "
        "Outliers are found anew in each layer, by the rule chosen.",
        tables=[Table(title="Norms by layer", columns=columns, rows=rows)],
        pictures=[
            Picture(
                name="layers",
                caption="Norms of patches by layer: median, and the middle 50, 90 and 100 %; other tokens: "
                "means.",
                figure=figure,
            )
        ],
        gaps=_zeros(subjects),
    )


def _draw_bands(axes: Axes, subject: Subject, quantiles_LxQ: np.ndarray, norms_BxLxT: np.ndarray) -> None:
    layers = np.arange(len(quantiles_LxQ))
    for (low, high), alpha in zip(((0, 6), (1, 5), (2, 4)), (0.15, 0.25, 0.4), strict=True):
        axes.fill_between(
            layers, quantiles_LxQ[:, low], quantiles_LxQ[:, high], color=BLUE, alpha=alpha, lw=0
        )
    axes.plot(layers, quantiles_LxQ[:, 3], color=BLUE, label="patches")
    for (name, where), color in zip(_groups(subject).items(), (BLUE, GREEN, ORANGE, GREY), strict=False):
        if name != "patches":
            axes.plot(layers, norms_BxLxT[:, :, where].mean((0, 2)), color=color, ls="--", label=name)
    axes.set(yscale=scale_for(norms_BxLxT), xlabel="block", ylabel="norm", title=subject.name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7)


def by_position(subjects: list[Subject], options: Options) -> Section:
    """How often each position holds an outlier."""
    figure = Figure(figsize=(3.4 * len(subjects) + 0.5, 3.2), layout="constrained")
    rows, gaps = [], []
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        found = subject.outliers(options.rule)
        share_HxW = found.is_outlier_BxP.mean(0).reshape(subject.layout.patch_grid)
        if not found.is_outlier_BxP.any():
            gaps.append(f"{subject.name}: no outliers by {options.rule}")
        border = np.ones(share_HxW.shape, bool)
        border[1:-1, 1:-1] = False
        inner = float(100 * share_HxW[~border].mean()) if (~border).any() else None
        rows.append(
            (subject.name, 100 * float(share_HxW.max()), 100 * float(share_HxW[border].mean()), inner)
        )
        shown = axes.imshow(100 * share_HxW, cmap="inferno", vmin=0)
        axes.set(xticks=[], yticks=[], title=subject.name)
        figure.colorbar(shown, ax=axes, label="images with an outlier here, %", shrink=0.8)
    columns = ("model", "most frequent position, %", "at the border, %", "inside, %")
    return Section(
        definition="The share of images whose patch at a position is an outlier by the rule chosen.",
        tables=[Table(title="Outliers by position", columns=columns, rows=rows)],
        pictures=[Picture(name="positions", caption="Where outliers are.", figure=figure)],
        gaps=gaps,
    )


def by_size(subjects: list[Subject], options: Options) -> Section:
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
    section = Section(
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
        section.gaps.append("all models are of one size; give some of several with --checkpoint")
    return section


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
