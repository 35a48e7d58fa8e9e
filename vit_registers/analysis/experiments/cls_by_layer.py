"""When cls becomes what it is after the last block. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.decoupling import (
    layer_similarity,
)
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import legend_name
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts


def layers(subjects: list[Subject], options: Options) -> Result:
    """How alike cls is after each block to what it is after the last."""
    rows = []
    figure = Figure(figsize=(5.0, 3.2), layout="constrained")
    axes = figure.subplots()
    for subject in subjects:
        cls_BxLxD = subject.store.read("cls_LxD")
        parts = [layer_similarity(cls_BxLxD[images]) for images in in_parts(len(cls_BxLxD))]
        similarity_BxL = np.concatenate(parts)
        found = [summarize(column) for column in similarity_BxL.T]
        rows += [(subject.name, i, one.mean, one.std) for i, one in enumerate(found)]
        axes.plot(
            np.linspace(0, 1, len(found)),
            [one.mean for one in found],
            "o-",
            ms=3,
            label=legend_name(subject.name),
        )
    axes.set(xlabel="block / depth", ylabel="cosine with cls after the last block")
    axes.legend(frameon=False, fontsize=8)
    return Result(
        definition="Cosine of cls before the first block (0) and after each with cls after the last, before "
        "the final norm; mean and standard deviation over images.",
        tables=[Table(title="cls by layer", columns=("model", "block", "cosine", "std"), rows=rows)],
        pictures=[Picture(name="layers", caption="cls on its way.", figure=figure)],
    )
