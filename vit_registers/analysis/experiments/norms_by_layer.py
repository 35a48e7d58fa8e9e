"""norms-by-layer: the norms of patches after each block, and where outliers begin. No JAX."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.experiments.norms import zero_norm_gaps
from vit_registers.analysis.measures.outliers import find
from vit_registers.analysis.options import Options
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject

_MOST_PANELS = 6


def _measure(subject: Subject, options: Options) -> Rows:
    norms_BxLxT = subject.store.read("norms_LxT")
    layout, rows, quantiles = subject.layout, [], []
    for layer in range(norms_BxLxT.shape[1]):
        norm_BxP = norms_BxLxT[:, layer, layout.patches]
        quantiles.append(np.quantile(norm_BxP, figures.BAND_QUANTILES))
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
        values=(np.array(quantiles), means),
        gaps=zero_norm_gaps(subject),
    )


def _lines(axes: Axes, values: tuple, color: str, name: str) -> None:
    quantiles_LxQ, means = values
    layers = np.arange(len(quantiles_LxQ))
    axes.fill_between(layers, quantiles_LxQ[:, 2], quantiles_LxQ[:, -3], color=color, alpha=0.2, lw=0)
    axes.plot(layers, quantiles_LxQ[:, 4], color=color, label=figures.legend_name(f"{name}: patches"))
    axes.plot(layers, quantiles_LxQ[:, -1], "_", color=color, ms=9)
    for (group, mean_L), style in zip(means.items(), figures.STYLES[1:], strict=False):
        axes.plot(layers, mean_L, style, color=color, label=figures.legend_name(f"{name}: {group}"))
    axes.set(xlabel="block", ylabel="norm")
    figures.plain_log(axes.yaxis)
    figures.integer_ticks(axes)


def _draw(found: Found) -> Pictures:
    """All models in one pair of axes, and the distributions of each of the first models in its own."""
    caption = (
        "Norms by layer. Patches: median, the middle 90 % (band), the largest (dash); other tokens: means."
    )
    yield from figures.overlay_picture("layers", caption, _lines)(found)
    shown = found[:_MOST_PANELS]
    bands = [
        figures.Band(one.name, range(len(one.values[0])), one.values[0], figures.color_of(one.place))
        for one in shown
    ]
    figure = figures.band_panels(bands, xlabel="block")
    first = f" The first {_MOST_PANELS} models." if len(found) > _MOST_PANELS else ""
    caption = f"Norms of patches by layer, of each model: {figures.BANDS}.{first}"
    yield Picture(name="distributions", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="In which block do outliers appear?",
    answers=f"{REGISTERS}, figure 4a; {SMALL}, figures 5, 8a and 8b",
    definition="L2 norms of the patches: 0 is what goes into the first block, n what block n leaves. "
    "Outliers are found in each layer separately, by the rule chosen.",
    tables={
        "Norms by layer": "model | block | median | p99 | max | {rule}, % | mean of cls | of registers"
        " | of summaries"
    },
    measure=_measure,
    features=("norms_LxT",),
    draw=_draw,
    compares="largest norm of a patch",
)
