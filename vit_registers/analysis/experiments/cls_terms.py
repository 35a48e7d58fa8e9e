"""What cls is made of in the last block, as a sum of terms. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.decoupling import (
    CkaSums,
    NormTable,
    norm_table,
)
from vit_registers.analysis.report.figures import BLUE
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

SKIP, BIAS = "skip", "bias"


def terms(subjects: list[Subject], options: Options) -> Result:
    """cls after the last attention as a sum of what comes from each token group: norms, cosines, CKA."""
    rows = []
    figure = Figure(figsize=(3.6 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        names = subject.term_names()
        attention = [name for name in names if name not in (SKIP, BIAS)]
        terms_BxExD = subject.store.read("terms_ExD")
        sums, tables = CkaSums(), []
        for images in in_parts(len(terms_BxExD)):
            part = _named(terms_BxExD[images], names)
            sums.add(part)
            tables.append(norm_table(part, full=names))
        to_attention, to_all = sums.with_full(attention), sums.with_full(names)
        table = NormTable.joined(tables).summary()
        for name in names:
            norm, cosine = table["norm"][name], table["cosine"][name]
            own = to_attention[name] if name in attention else None
            size = (norm.mean, norm.std) if norm.mean else (None, None)  # 0: there is no such term
            rows.append((subject.name, name, *size, cosine.mean, own, to_all[name]))
        shown = [name for name in attention if to_attention[name] is not None]
        axes.bar(shown, [to_attention[name] for name in shown], color=BLUE)
        axes.set(ylim=(0, 1), ylabel="CKA with the attention's output", title=subject.name)
        axes.tick_params(axis="x", labelsize=8)
    columns = (
        "model",
        "term",
        "norm",
        "std",
        "cosine with the sum",
        "CKA with attention",
        "CKA with the sum",
    )
    return Result(
        definition="cls after the attention of the last block, before its MLP, is the sum of: its attention "
        "to each token group (weights of the other groups set to zero, not divided again), after the output "
        "projection and LayerScale; the projection's bias; and the skip connection. Linear CKA over images, "
        "of each term with the attention's output (the sum without skip and bias) and with the whole sum. "
        "A term that is zero in every image, such as the bias of a model that has none, has no numbers.",
        tables=[Table(title="Terms of cls", columns=columns, rows=rows)],
        pictures=[
            Picture(name="cka", caption="CKA of each part with the attention's output.", figure=figure)
        ],
    )


def _named(terms_BxExD: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {name: terms_BxExD[:, i] for i, name in enumerate(names)}
