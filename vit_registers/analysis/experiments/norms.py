"""norms: the norms of tokens after the last block, and which patches are outliers. No JAX."""

import numpy as np
from scipy import stats

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import color_of
from vit_registers.analysis.report.figures import (
    STYLES,
    legend_above,
    legend_name,
    new_axes,
    norm_edges,
    plain_log,
)
from vit_registers.analysis.report.headline import FEWEST, over_images
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, patches_first

RULES = ("quantile:0.98", "batch:0.98/64", "std:3", "valley")  # beside the one that was chosen


def _measure(subject: Subject, options: Options) -> Rows:
    norm_BxP, outliers = subject.patch_norms(), subject.outliers(options.rule)
    norm_BxT, after = subject.store.read("norms_LxT")[:, -1], subject.store.read("final_norms_T")
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
        values=(norm_BxT, patches_first(subject), outliers.threshold, options.rule),
        gaps=zero_norm_gaps(subject),
        headlines=[over_images("outliers, % of patches", 100 * outliers.is_outlier_BxP.mean(1))],
        remark=_modes(norm_BxP),
    )


def _modes(norm_BxP: np.ndarray) -> str:
    """What the valley rule says about the histogram; nothing of few images."""
    if len(norm_BxP) < FEWEST:
        return ""
    modes = "one mode" if find(norm_BxP, "valley").threshold is None else "a second mode of large norms"
    return f"the histogram of norms of patches has {modes}"


def zero_norm_gaps(subject: Subject) -> list[str]:
    """A gap for a model that gives patches of zeros only, else none."""
    return [] if subject.patch_norms().any() else [f"{subject.name}: the norms of all patches are 0"]


def _draw(found: Found) -> Pictures:
    """One figure of the patches of all models, and one of their other tokens, on the same bins."""
    every_N = np.concatenate([one.values[0].ravel() for one in found])
    for name, what in (("histogram", "patches"), ("others", "other tokens")):
        figure, axes = new_axes()
        edges = norm_edges(every_N).tolist()
        for one in found:
            norm_BxT, groups, threshold, _ = one.values
            color, styles = color_of(one.place), iter(STYLES)
            for group, where in groups.items():
                if (group == "patches") == (what == "patches"):
                    label = legend_name(f"{one.name}: {group}")
                    norms = norm_BxT[:, where].ravel()
                    axes.hist(norms, edges, histtype="step", color=color, ls=next(styles), label=label)
            if threshold is not None and what == "patches":
                axes.axvline(threshold, color=color, lw=0.9, ls="--")
        axes.set(xlabel="norm", ylabel="tokens")
        plain_log(axes.xaxis)
        plain_log(axes.yaxis)
        legend_above(axes)
        dashed = f"; dashed: the threshold of {found[0].values[3]}" if what == "patches" else ""
        caption = f"Norms of {what} after the last block{dashed}."
        if axes.patches:
            yield Picture(name=name, caption=caption, figure=figure, is_headline=what == "patches")


EXPERIMENT = Experiment(
    question="How large are the tokens that the last block leaves, and which are outliers?",
    answers=f"{REGISTERS}, figures 3, 7 and 15; {SMALL}, figure 4",
    definition="L2 norms of the tokens that the last block leaves, before the final norm, which would shrink "
    "the largest; the table has them after it too. Kurtosis is Fisher's (0 for a normal distribution). "
    "Rules: quantile:0.98 is the largest 2 % of all patches; batch:0.98/64 that of each 64 images in their "
    "order, with the mean of their thresholds; std:3 is above mean + 3 standard deviations; valley is above "
    "the lowest point between the modes of the histogram of log norms.",
    tables={
        "Norms by token": "model | token | mean | median | p99 | max | p99 / median | kurtosis"
        " | median after norm",
        "Outliers by rule": "model | rule | threshold | patches flagged, % | images with any, %",
    },
    measure=_measure,
    features=("norms_LxT", "final_norms_T"),
    draw=_draw,
    compares="share of outliers, %",
)
