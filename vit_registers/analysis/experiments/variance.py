"""How much of the variance of the features is the outliers'. No JAX."""

import numpy as np

from vit_registers.analysis.measures.severity import VarianceSums
from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts


def variance(subjects: list[Subject], options: Options) -> Result:
    """Variance of flagged and of other patches, and their shares of the total."""
    rows, gaps = [], []
    for subject in subjects:
        patches_BxPxD = subject.store.read("patches_PxD")
        is_outlier_BxP = subject.outliers(options.rule).is_outlier_BxP
        sums = VarianceSums()
        for part in in_parts(len(patches_BxPxD)):
            sums.add(np.asarray(patches_BxPxD[part]), is_outlier_BxP[part])
        found = sums.result()
        if not found.num_outliers:
            gaps.append(f"{subject.name}: no outliers by {options.rule}")
        rows.append((subject.name, *found))
    columns = (
        "model",
        "outliers",
        "others",
        "variance of outliers",
        "of others",
        "share within outliers",
        "within others",
        "between",
    )
    return Result(
        definition="Patches that the last block leaves, before the final norm: trace of the covariance of "
        "those that the rule flags and of the others; and how the sum of squared distances from the mean of "
        "all splits into that around the outliers' mean, around the others' mean, and between the two.",
        tables=[Table(title="Variance", columns=columns, rows=rows)],
        gaps=gaps,
    )
