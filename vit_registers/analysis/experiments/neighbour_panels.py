"""Cosines with neighbours, around outliers and elsewhere: neighbours and smoothness share it. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.severity import DENSITY_POINTS, NeighbourCosine, split_by_outlier
from vit_registers.analysis.report.figures import BLUE, ORANGE
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

_SEED = 0


def split_cosines(subjects: list[Subject], options: Options, feature: str, what: str) -> Result:
    rows, gaps = [], []
    figure = Figure(figsize=(4.0 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        cosine_Bx4xP = np.asarray(subject.store.read(feature), np.float64)
        is_valid = ~np.isnan(cosine_Bx4xP)
        outliers = subject.outliers(options.rule)
        found = split_by_outlier(
            NeighbourCosine(np.where(is_valid, cosine_Bx4xP, 0.0), is_valid),
            outliers.is_outlier_BxP,
            seed=_SEED,
        )
        if found.ks_distance is None:
            which = "patches are all" if outliers.is_outlier_BxP.all() else "no patches are"
            gaps.append(f"{subject.name}: {which} outliers by {options.rule}, so nothing to compare with")
        for name, group, color in (
            ("outliers", found.outliers, ORANGE),
            ("others", found.background, BLUE),
        ):
            distance = found.ks_distance if name == "outliers" else None
            rows.append(
                (subject.name, name, group.num_tokens, group.num_pairs, group.mean, group.median, distance)
            )
            if group.density is not None:
                axes.plot(DENSITY_POINTS, group.density, color=color, label=name)
        axes.set(xlabel="cosine with a neighbour", ylabel="density", title=subject.name)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    columns = ("model", "patches", "tokens", "pairs", "mean", "median", "Kolmogorov-Smirnov distance")
    return Result(
        definition=f"{what}: cosine of each patch with the patches above, below, left and right of it, every "
        "pair counted for the kind of its centre. Outliers are those of the last block's output, by the rule "
        "chosen. Densities are Gaussian kernel estimates.",
        tables=[Table(title="Cosine with neighbours", columns=columns, rows=rows)],
        pictures=[Picture(name="cosine", caption="Densities of the cosine.", figure=figure)],
        gaps=gaps,
    )
