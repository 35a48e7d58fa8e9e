"""Norms of patches after each block: where outliers begin. No JAX."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.token_groups import patches_first, zero_norm_gaps
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject


def by_layer(subjects: list[Subject], options: Options) -> Result:
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
    return Result(
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
        gaps=zero_norm_gaps(subjects),
    )


def _draw_bands(axes: Axes, subject: Subject, quantiles_LxQ: np.ndarray, norms_BxLxT: np.ndarray) -> None:
    layers = np.arange(len(quantiles_LxQ))
    for (low, high), alpha in zip(((0, 6), (1, 5), (2, 4)), (0.15, 0.25, 0.4), strict=True):
        axes.fill_between(
            layers, quantiles_LxQ[:, low], quantiles_LxQ[:, high], color=BLUE, alpha=alpha, lw=0
        )
    axes.plot(layers, quantiles_LxQ[:, 3], color=BLUE, label="patches")
    for (name, where), color in zip(
        patches_first(subject).items(), (BLUE, GREEN, ORANGE, GREY), strict=False
    ):
        if name != "patches":
            axes.plot(layers, norms_BxLxT[:, :, where].mean((0, 2)), color=color, ls="--", label=name)
    axes.set(yscale=scale_for(norms_BxLxT), xlabel="block", ylabel="norm", title=subject.name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=7)
