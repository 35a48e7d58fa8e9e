"""neighbours: whether outliers appear where patches are like their neighbours at the patch embedding."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures import severity
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import BLUE, ORANGE, panels_picture
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject


def cosine_experiment(*, question: str, answers: str, feature: str, what: str) -> Experiment:
    """The experiment on the cosines of `feature`, which are those of the patches that `what` describes."""
    return Experiment(
        question=question,
        answers=answers,
        definition=f"{what}: cosine of each patch with the patches above, below, left and right of it, every "
        "pair counted for the kind of its centre. Outliers are those of the last block's output, by the rule "
        "chosen. Densities are Gaussian kernel estimates.",
        tables={
            "Cosine with neighbours": "model | patches | tokens | pairs | mean | median"
            " | Kolmogorov-Smirnov distance"
        },
        measure=lambda subject, options: _measure(subject, options, feature),
        features=("norms_LxT", feature),
        draw=panels_picture("cosine", "Densities of the cosine.", _panel, width=4.0),
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
    gap = f"{subject.name}: {which} outliers by {options.rule}, so nothing to compare with"
    return Rows(
        tables={
            "Cosine with neighbours": [
                (name, group.num_tokens, group.num_pairs, group.mean, group.median, distance)
                for name, group, distance in groups
            ]
        },
        text=f"the mean cosine with neighbours is {number(outliers.mean)} at {outliers.num_tokens:,} "
        f"outliers and {number(others.mean)} at {others.num_tokens:,} other patches",
        compared=others.mean,
        count=counted(len(cosine_Bx4xP), "image"),
        values=found,
        gaps=[gap] if found.ks_distance is None else [],
    )


def _panel(axes: Axes, found: severity.NeighbourSplit) -> None:
    for name, group, color in (("outliers", found.outliers, ORANGE), ("others", found.background, BLUE)):
        if group.density is not None:
            axes.plot(severity.DENSITY_POINTS, group.density, color=color, label=name)
    axes.set(xlabel="cosine with a neighbour", ylabel="density")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


EXPERIMENT = cosine_experiment(
    question="Do outliers appear where patches are like their neighbours?",
    answers=f"{REGISTERS}, figure 5a; {SMALL}, figure 6",
    feature="embed_cosine_4xP",
    what="What leaves the patch embedding, before positions are added",
)
