"""norms: the norms of tokens after the last block, and which patches are outliers. No JAX."""

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, draw_norms, panels_picture
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject, patches_first

RULES = ("quantile:0.98", "std:3", "valley")  # beside the one that was chosen


def _measure(subject: Subject, options: Options) -> Rows:
    norm_BxP, outliers = subject.patch_norms(), subject.outliers(options.rule)
    norm_BxT, after = subject.store.read("norms_LxT")[:, -1], subject.store.read("final_norms_T")
    groups = zip(patches_first(subject).items(), (BLUE, GREEN, ORANGE, GREY), strict=False)
    shown = {name: (norm_BxT[:, where], color) for (name, where), color in groups}
    share, by_token, by_rule = 100 * outliers.share, [], []
    for token, where in subject.tokens().items():
        norm_N = np.asarray(norm_BxT[:, where], np.float64).ravel()
        median, p99 = map(float, np.quantile(norm_N, [0.5, 0.99]))
        spread = float(stats.kurtosis(norm_N)) if norm_N.std() > 1e-9 * norm_N.mean() else None
        numbers = (float(norm_N.mean()), median, p99, float(norm_N.max()), p99 / median if median else None)
        by_token.append((token, *numbers, spread, float(np.median(after[:, where]))))
    for rule in dict.fromkeys((options.rule, *RULES)):
        found = find(norm_BxP, rule)
        images = float(found.is_outlier_BxP.any(1).mean())
        by_rule.append((rule, found.threshold, 100 * found.share, 100 * images))
    return Rows(
        tables={"Norms by token": by_token, "Outliers by rule": by_rule},
        text=f"{number(share, '%')} of {norm_BxP.size:,} patches are outliers by {options.rule}",
        compared=share,
        count=counted(len(norm_BxP), "image"),
        values=(norm_BxT, shown, outliers.threshold, options.rule),
        gaps=zero_norm_gaps(subject),
    )


def zero_norm_gaps(subject: Subject) -> list[str]:
    """A gap for a model that gives patches of zeros only, else none."""
    return [] if subject.patch_norms().any() else [f"{subject.name}: the norms of all patches are 0"]


def _panel(axes: Axes, values: tuple) -> None:
    norm_BxT, groups, threshold, rule = values
    draw_norms(axes, norm_BxT, groups, threshold=threshold, threshold_label=rule)


EXPERIMENT = Experiment(
    question="How large are the tokens that the last block leaves, and which are outliers?",
    answers=f"{REGISTERS}, figures 3, 7 and 15; {SMALL}, figure 4",
    definition="L2 norms of the tokens that the last block leaves, before the final norm, which would shrink "
    "the largest; the table has them after it too. Kurtosis is Fisher's (0 for a normal distribution).",
    tables={
        "Norms by token": "model | token | mean | median | p99 | max | p99 / median | kurtosis"
        " | median after norm",
        "Outliers by rule": "model | rule | threshold | patches flagged, % | images with any, %",
    },
    measure=_measure,
    features=("norms_LxT", "final_norms_T"),
    draw=panels_picture(
        "histogram",
        "Norms of tokens after the last block; the dashed line is the threshold of the rule chosen.",
        _panel,
    ),
    compares="share of outliers, %",
)
