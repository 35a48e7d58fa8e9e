"""norms-by-size: the norms of patches by the number of parameters of the model. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import BLUE, GREY, RED
from vit_registers.analysis.report.figures import new_axes, plain_log
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject


def _measure(subject: Subject, options: Options) -> Rows:
    norm_BxP, outliers = subject.patch_norms(), subject.outliers(options.rule)
    median, p99 = map(float, np.quantile(norm_BxP, [0.5, 0.99]))
    size, share = subject.num_parameters, 100 * outliers.share
    return Rows(
        tables={"Norms by size": [(size, median, p99, float(norm_BxP.max()), share)]},
        text=f"of {size:,} parameters, {number(share, '%')} of {norm_BxP.size:,} patches are outliers by "
        f"{options.rule}",
        compared=share,
        count=counted(len(norm_BxP), "image"),
        values=(size, norm_BxP, outliers.threshold),
    )


def _across(found: Found) -> list[str]:
    is_one_size = found and len({one.values[0] for one in found}) < 2
    return ["all models are of one size; give models of several with --checkpoint"] if is_one_size else []


def _draw(found: Found) -> Pictures:
    norms = (one.values[1] for one in found)
    ends = [(norm_BxP[norm_BxP > 0].min(initial=np.inf), norm_BxP.max()) for norm_BxP in norms]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    edges = np.geomspace(low / 1.01, high * 1.01, 120) if 0 < low <= high else np.geomspace(0.1, 10, 120)
    middles, half = np.sqrt(edges[1:] * edges[:-1]), 0.42
    figure, axes = new_axes(2.8)
    for place, (_, norm_BxP, threshold) in enumerate(one.values for one in found):
        width = np.log1p(np.histogram(norm_BxP, edges)[0])
        width *= half / max(width.max(), 1.0)
        axes.fill_betweenx(middles, place - width, place + width, color=BLUE, alpha=0.6, lw=0, step="mid")
        axes.hlines(np.median(norm_BxP), place - half, place + half, color=GREY)
        if threshold is not None and edges[0] / 2 < threshold < 2 * edges[-1]:
            axes.hlines(threshold, place - half, place + half, color=RED, ls="--", lw=0.9)
    labels = [f"{one.name}\n{one.values[0]:,}" for one in found]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    if max(len(one.name) for one in found) > 14:
        axes.tick_params(axis="x", rotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set(ylabel="norm of patches", xlim=(-0.6, len(found) - 0.4))
    plain_log(axes.yaxis)
    caption = (
        "Norms of patches, the smallest model first. Widths are log(1 + patches) in a bin, so that few large "
        "norms are seen too; all patches count. Line: median; dashes: threshold."
    )
    return [Picture(name="sizes", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Do only large models have outliers?",
    answers=f"{REGISTERS}, figure 4c",
    definition="L2 norms of the patches that the last block leaves, before the final norm; all of a "
    "model's parameters are counted. The last column is the share of patches that the rule flags.",
    tables={"Norms by size": "model | parameters | median | p99 | max | {rule}, %"},
    measure=_measure,
    features=("norms_LxT",),
    draw=_draw,
    arrange=lambda found: sorted(found, key=lambda one: one.values[0]),
    across=_across,
    compares="share of outliers, %",
)
