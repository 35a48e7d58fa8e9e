"""neighbours: whether outliers appear where patches are like their neighbours at the patch embedding."""

import warnings

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment, few
from vit_registers.analysis.measures import severity
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import legend_name, overlay_picture
from vit_registers.analysis.report.headline import over_images
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject

AFTER_LAST = "output_cosine_4xP"  # the feature of the patches after the last block


def cosine_experiment(*, question: str, answers: str, feature: str, what: str) -> Experiment:
    """The experiment on the cosines of `feature`, which are those of the patches that `what` describes."""
    return Experiment(
        question=question,
        answers=answers,
        definition=f"{what}: cosine of each patch with the patches above, below, left and right of it, every "
        "pair counted for the kind of its centre. Outliers are those of the last block's output, by the rule "
        "chosen. Densities are Gaussian kernel estimates."
        + (" Summary tokens have neighbours in the grid of their level." if feature == AFTER_LAST else ""),
        tables={
            "Cosine with neighbours": "model | patches | tokens | pairs | mean | median"
            " | Kolmogorov-Smirnov distance"
        },
        measure=lambda subject, options: _measure(subject, options, feature),
        features=("norms_LxT", feature, *(["extras_ExD"] if feature == AFTER_LAST else [])),
        draw=overlay_picture(
            "cosine",
            "Densities of the cosine of a patch with its neighbours: outliers (dashed) and other patches.",
            _densities,
        ),
        compares="mean cosine at patches that are no outliers",
    )


def _measure(subject: Subject, options: Options, feature: str) -> Rows:
    cosine_Bx4xP = np.asarray(subject.store.read(feature), np.float64)
    is_valid = ~np.isnan(cosine_Bx4xP)
    is_outlier_BxP = subject.outliers(options.rule).is_outlier_BxP
    neighbours = severity.NeighbourCosine(np.where(is_valid, cosine_Bx4xP, 0.0), is_valid)
    found = severity.split_by_outlier(neighbours, is_outlier_BxP, seed=0)
    outliers, others = found.outliers, found.background
    groups = (("outliers", outliers, found.ks_distance), ("others", others, None))
    which = "patches are all" if is_outlier_BxP.all() else "no patches are"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of images without neighbours
        mean_B = np.nanmean(cosine_Bx4xP, axis=(1, 2))
    gap = f"{subject.name}: {which} outliers by {options.rule}, so nothing to compare with"
    return Rows(
        tables={
            "Cosine with neighbours": [
                *(
                    (name, group.num_tokens, group.num_pairs, group.mean, group.median, distance)
                    for name, group, distance in groups
                ),
                *_summary_rows(subject, feature),
            ]
        },
        text=f"the mean cosine with neighbours is {number(outliers.mean)} at {outliers.num_tokens:,} "
        f"outliers and {number(others.mean)} at {others.num_tokens:,} other patches",
        compared=others.mean,
        count=counted(len(cosine_Bx4xP), "image"),
        values=found,
        gaps=[gap] if found.ks_distance is None else [],
        cautions=few(subject.name, outliers.num_tokens, "outlier"),
        headlines=[over_images("cosine of neighbouring patches", mean_B)] if feature == AFTER_LAST else [],
    )


def _summary_rows(subject: Subject, feature: str) -> list[tuple]:
    """Rows of the summary levels of several tokens, each with its own grid; only after the last block."""
    if feature != AFTER_LAST:
        return []
    layout, rows = subject.layout, []
    extras_BxExD = subject.store.read("extras_ExD")
    for grid, where in zip(layout.summary_grids, layout.grid_slices, strict=False):
        token_BxSxD = np.asarray(extras_BxExD[:, where])
        found = severity.neighbour_cosine(token_BxSxD, grid)
        cosines = found.cosine_Bx4xP[found.is_valid_Bx4xP]
        if cosines.size:
            count = token_BxSxD.shape[0] * token_BxSxD.shape[1]
            rows.append(
                (
                    f"summary {grid[0]} x {grid[1]}",
                    count,
                    cosines.size,
                    float(cosines.mean()),
                    float(np.median(cosines)),
                    None,
                )
            )
    return rows


def _densities(axes: Axes, found: severity.NeighbourSplit, color: str, name: str) -> None:
    for kind, group, style in (("outliers", found.outliers, "--"), ("others", found.background, "-")):
        if group.density is not None:
            label = legend_name(f"{name}: {kind}")
            axes.plot(severity.DENSITY_POINTS, group.density, style, color=color, label=label)
    axes.set(xlabel="cosine with a neighbour", ylabel="density")


EXPERIMENT = cosine_experiment(
    question="Do outliers appear where patches are like their neighbours?",
    answers=f"{REGISTERS}, figure 5a; {SMALL}, figure 6",
    feature="embed_cosine_4xP",
    what="What leaves the patch embedding, before positions are added",
)
