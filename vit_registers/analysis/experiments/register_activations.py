"""Whether one register has the high norm, and how alike it is between images. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.decoupling import (
    register_activations,
)
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import BLUE, ORANGE, scale_for
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject


def registers(subjects: list[Subject], options: Options) -> Result:
    """Whether one register carries the high norm, and how alike it is between images."""
    rows, gaps = [], []
    figure = Figure(figsize=(4.2 * len(subjects) + 0.5, 3.2), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        hidden = subject.store.read("register_hidden_2xRxD")
        found = register_activations(hidden[:, 0], hidden[:, 1])
        if not found.norm_BxR.any():
            gaps.append(f"{subject.name}: all registers are 0, so that none has the highest norm")
        ratio = None if found.ratio_B is None else summarize(found.ratio_B).mean
        rows.append(
            (
                subject.name,
                found.register,
                100 * found.consistency,
                float(found.norm_BxR[:, found.register].mean()),
                ratio,
                found.cosine_before,
                found.cosine_after,
            )
        )
        axes.plot(np.abs(found.mean_before), color=BLUE, label="before the norm")
        axes.plot(np.abs(found.mean_after), color=ORANGE, label="after it")
        axes.set(xlabel="dimension, by size", ylabel="size of the mean", title=subject.name)
        axes.set_yscale(scale_for(np.abs([found.mean_before, found.mean_after])))
        axes.legend(frameon=False, fontsize=8)
    columns = (
        "model",
        "register",
        "highest in images, %",
        "mean norm",
        "highest / second",
        "cosine between images",
        "after the norm",
    )
    return Result(
        definition="The registers that go into the last block: which has the highest norm most often, its "
        "cosine between images (mean over all pairs), and the sizes of its 100 largest mean activations, "
        "before and after the block's first norm.",
        tables=[Table(title="The register of highest norm", columns=columns, rows=rows)],
        pictures=[Picture(name="activations", caption="Largest mean activations.", figure=figure)],
        gaps=gaps,
    )
