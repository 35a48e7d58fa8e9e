"""cls-terms: what cls is made of after the last attention, as a sum of terms. No JAX."""

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import CkaSums, NormTable, norm_table
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_bars, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts

_NOT_ATTENTION = ("skip", "bias")


def _measure(subject: Subject, options: Options) -> Rows:
    names = subject.term_names()
    attention = [name for name in names if name not in _NOT_ATTENTION]
    terms_BxExD = subject.store.read("terms_ExD")
    sums, tables = CkaSums(), []
    for images in in_parts(len(terms_BxExD)):
        part = {name: terms_BxExD[images][:, i] for i, name in enumerate(names)}
        sums.add(part)
        tables.append(norm_table(part, full=names))
    to_attention, to_all = sums.with_full(attention), sums.with_full(names)
    table, rows = NormTable.joined(tables).summary(), []
    for name in names:
        norm, cosine = table["norm"][name], table["cosine"][name]
        own = to_attention[name] if name in attention else None
        size = (norm.mean, norm.std) if norm.mean else (None, None)  # 0: there is no such term
        rows.append((name, *size, cosine.mean, own, to_all[name]))
    shown = {name: to_attention[name] for name in attention if to_attention[name] is not None}
    parts = ", ".join(f"{number(cka)} for {name}" for name, cka in shown.items())
    return Rows(
        tables={"Terms of cls": rows},
        text=f"the CKA with the output of attention is {parts or 'not defined'}",
        compared=shown.get("patches"),
        count=counted(len(terms_BxExD), "image"),
        values=shown,
    )


def _draw(found: Found) -> Pictures:
    figure, axes = new_axes()
    grouped_bars(axes, found, lambda one: one.values)
    axes.set(ylim=(0, 1), ylabel="CKA with the attention's output")
    legend_above(axes)
    caption = (
        "Linear CKA of what cls gets from each token group with all that it gets; 1: the same up to a "
        "rotation and a factor."
    )
    return [Picture(name="cka", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="What is the output of cls made of: patches, registers, or what it was before?",
    answers=f"{DECOUPLING}, figures 3a, 5a, 6 and 8",
    definition="cls after the attention of the last block, before its MLP, is the sum of: its attention "
    "to each token group (weights of the other groups set to zero, not divided again), after the output "
    "projection and LayerScale; the projection's bias; and the skip connection. Linear CKA over images, "
    "of each term with the attention's output (the sum without skip and bias) and with the whole sum. "
    "A term that is zero in every image, such as the bias of a model that has none, has no numbers.",
    tables={
        "Terms of cls": "model | term | norm | std | cosine with the sum | CKA with attention"
        " | CKA with the sum"
    },
    measure=_measure,
    features=("terms_ExD",),
    draw=_draw,
    compares="CKA of patches with the output of attention",
)
