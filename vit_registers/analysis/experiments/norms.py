"""Norms of tokens after the last block: how they are distributed, which are outliers. No JAX."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from vit_registers.analysis.experiments.token_groups import patches_first, zero_norm_gaps
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.report.figures import BLUE, GREEN, GREY, ORANGE, RED, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject

RULES = ("quantile:0.98", "std:3", "valley")  # beside the one that was chosen


def distribution(subjects: list[Subject], options: Options) -> Result:
    """Norms after the last block, by token and by outlier rule."""
    return Result(
        definition="L2 norms of the tokens that the last block leaves, before the final norm, which would "
        "shrink the largest; the table has them after it too. Kurtosis is Fisher's (0 for a normal "
        "distribution).",
        tables=[_by_token(subjects), _by_rule(subjects, options)],
        pictures=[_histograms(subjects, options)],
        gaps=zero_norm_gaps(subjects),
    )


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
        for (token, where), color in zip(
            patches_first(subject).items(), (BLUE, GREEN, ORANGE, GREY), strict=False
        ):
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
