"""What cls is made of in the last block, and where the registers stand. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.measures.decoupling import (
    CkaSums,
    NormTable,
    layer_similarity,
    norm_table,
    register_activations,
)
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.figures import BLUE, ORANGE, legend_name, scale_for
from vit_registers.analysis.report.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

SKIP, BIAS = "skip", "bias"


def terms(subjects: list[Subject], options: Options) -> Section:
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
    return Section(
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


def layers(subjects: list[Subject], options: Options) -> Section:
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
    return Section(
        definition="Cosine of cls before the first block (0) and after each with cls after the last, before "
        "the final norm; mean and standard deviation over images.",
        tables=[Table(title="cls by layer", columns=("model", "block", "cosine", "std"), rows=rows)],
        pictures=[Picture(name="layers", caption="cls on its way.", figure=figure)],
    )


def registers(subjects: list[Subject], options: Options) -> Section:
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
    return Section(
        definition="The registers that go into the last block: which has the highest norm most often, its "
        "cosine between images (mean over all pairs), and the sizes of its 100 largest mean activations, "
        "before and after the block's first norm.",
        tables=[Table(title="The register of highest norm", columns=columns, rows=rows)],
        pictures=[Picture(name="activations", caption="Largest mean activations.", figure=figure)],
        gaps=gaps,
    )
