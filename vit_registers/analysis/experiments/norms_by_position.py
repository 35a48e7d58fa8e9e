"""How often each position holds an outlier. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject


def by_position(subjects: list[Subject], options: Options) -> Result:
    """How often each position holds an outlier."""
    figure = Figure(figsize=(3.4 * len(subjects) + 0.5, 3.2), layout="constrained")
    rows, gaps = [], []
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        found = subject.outliers(options.rule)
        share_HxW = found.is_outlier_BxP.mean(0).reshape(subject.layout.patch_grid)
        if not found.is_outlier_BxP.any():
            gaps.append(f"{subject.name}: no outliers by {options.rule}")
        border = np.ones(share_HxW.shape, bool)
        border[1:-1, 1:-1] = False
        inner = float(100 * share_HxW[~border].mean()) if (~border).any() else None
        rows.append(
            (subject.name, 100 * float(share_HxW.max()), 100 * float(share_HxW[border].mean()), inner)
        )
        shown = axes.imshow(100 * share_HxW, cmap="inferno", vmin=0)
        axes.set(xticks=[], yticks=[], title=subject.name)
        figure.colorbar(shown, ax=axes, label="images with an outlier here, %", shrink=0.8)
    columns = ("model", "most frequent position, %", "at the border, %", "inside, %")
    return Result(
        definition="The share of images whose patch at a position is an outlier by the rule chosen.",
        tables=[Table(title="Outliers by position", columns=columns, rows=rows)],
        pictures=[Picture(name="positions", caption="Where outliers are.", figure=figure)],
        gaps=gaps,
    )
