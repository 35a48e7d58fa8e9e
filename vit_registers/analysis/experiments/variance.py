"""variance: how much of the variance of the features is the outliers'. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import SEVERITY, Experiment, few
from vit_registers.analysis.measures.severity import VarianceSums
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Rows, counted, number, percent
from vit_registers.analysis.subject import Subject, in_parts


def _measure(subject: Subject, options: Options) -> Rows:
    patches_BxPxD = subject.store.read("patches_PxD")
    is_outlier_BxP = subject.outliers(options.rule).is_outlier_BxP
    sums = VarianceSums()
    for part in in_parts(len(patches_BxPxD)):
        sums.add(np.asarray(patches_BxPxD[part]), is_outlier_BxP[part])
    found = sums.result()
    shares = percent(found.share_outliers), percent(found.share_between)
    total = found.num_outliers + found.num_background
    return Rows(
        tables={"Variance": [(*found[:4], *map(percent, found[4:]))]},
        text=f"{number(shares[0], '%')} of the variance lies within the {found.num_outliers:,} outliers of "
        f"{total:,} patches, and {number(shares[1], '%')} between them and the others",
        compared=shares[0],
        count=counted(len(patches_BxPxD), "image"),
        cautions=few(subject.name, found.num_outliers, "outlier"),
        gaps=[] if found.num_outliers else [f"{subject.name}: no outliers by {options.rule}"],
    )


EXPERIMENT = Experiment(
    question="How much of the features' variance is the outliers'?",
    answers=SEVERITY,
    definition="Patches that the last block leaves, before the final norm: trace of the covariance of "
    "those that the rule flags and of the others; and how the sum of squared distances from the mean of "
    "all splits into that around the outliers' mean, around the others' mean, and between the two.",
    tables={
        "Variance": "model | outliers | others | variance of outliers | of others | share within outliers, %"
        " | within others, % | between, %"
    },
    measure=_measure,
    features=("norms_LxT", "patches_PxD"),
    compares="share of the variance within outliers, %",
)
