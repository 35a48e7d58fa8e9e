"""norms-by-layer: the norms of patches after each block, and where outliers begin. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.experiments.norms import zero_norm_gaps
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Rows, counted, number
from vit_registers.analysis.subject import Subject


def _measure(subject: Subject, options: Options) -> Rows:
    norms_BxLxT = subject.store.read("norms_LxT")
    layout, rows, quantiles = subject.layout, [], []
    for layer in range(norms_BxLxT.shape[1]):
        norm_BxP = norms_BxLxT[:, layer, layout.patches]
        quantiles.append(np.quantile(norm_BxP, [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0]))
        median, p99 = map(float, np.quantile(norm_BxP, [0.5, 0.99]))
        means_of = [
            float(norms_BxLxT[:, layer, where].mean()) if where.stop > where.start else None
            for where in (layout.cls, layout.registers, layout.summaries)
        ]
        flagged = 100 * find(norm_BxP, options.rule).share
        rows.append((layer, median, p99, float(norm_BxP.max()), flagged, *means_of))
    others = [name for name in layout.groups if name != "patches"]
    means = {name: norms_BxLxT[:, :, layout.groups[name]].mean((0, 2)) for name in others}
    block, _, _, largest, *_ = max(rows, key=lambda row: row[3])
    return Rows(
        tables={"Norms by layer": rows},
        text=f"the largest norm of a patch, {number(largest)}, is after block {block}, and after the "
        f"last block {number(rows[-1][4], '%')} of the patches are outliers by {options.rule}",
        compared=largest,
        count=counted(len(norms_BxLxT), "image"),
        values=(np.array(quantiles), means, figures.scale_for(norms_BxLxT)),
        gaps=zero_norm_gaps(subject),
    )


def _panel(axes: Axes, values: tuple) -> None:
    quantiles_LxQ, means, scale = values
    layers = np.arange(len(quantiles_LxQ))
    for low, high, alpha in ((0, 6, 0.15), (1, 5, 0.25), (2, 4, 0.4)):
        band = quantiles_LxQ[:, low], quantiles_LxQ[:, high]
        axes.fill_between(layers, *band, color=figures.BLUE, alpha=alpha, lw=0)
    axes.plot(layers, quantiles_LxQ[:, 3], color=figures.BLUE, label="patches")
    colors = (figures.GREEN, figures.ORANGE, figures.GREY)
    for (name, mean_L), color in zip(means.items(), colors, strict=False):
        axes.plot(layers, mean_L, color=color, ls="--", label=name)
    axes.set(yscale=scale, xlabel="block", ylabel="norm")
    figures.integer_ticks(axes)
    axes.legend(frameon=False, fontsize=7)


EXPERIMENT = Experiment(
    question="In which block do outliers appear?",
    answers=f"{REGISTERS}, figure 4a; {SMALL}, figures 5 and 8",
    definition="L2 norms of the patches: 0 is what goes into the first block, n what block n leaves. "
    "Outliers are found in each layer separately, by the rule chosen.",
    tables={
        "Norms by layer": "model | block | median | p99 | max | {rule}, % | mean of cls | of registers"
        " | of summaries"
    },
    measure=_measure,
    features=("norms_LxT",),
    draw=figures.panels_picture(
        "layers",
        "Norms of patches by layer: median, and the middle 50, 90 and 100 %; other tokens: means.",
        _panel,
    ),
    compares="largest norm of a patch",
)
