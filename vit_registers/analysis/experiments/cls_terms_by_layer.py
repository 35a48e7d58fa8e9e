"""cls-terms-by-layer: what cls is made of after the attention of each block. No JAX."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.cls_terms import NON_PATCH, batches, with_non_patch
from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import CkaSums, NormTable, norm_table
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import color_of
from vit_registers.analysis.report.figures import (
    integer_ticks,
    legend_above,
    new_axes,
    plain_log,
)
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject

# The terms in pictures, which the places of colours follow.
_SHOWN = ("patches", "skip", "registers", "cls", "summaries", NON_PATCH)
_QUANTILES = (0.05, 0.5, 0.95)


def _measure(subject: Subject, options: Options) -> Rows:
    names, terms_BxLxExD = subject.term_names(), subject.store.read("terms_LxExD")
    num_blocks, rows = terms_BxLxExD.shape[1], []
    cka: dict[str, list[tuple[float | None, float | None]]] = {}
    norms: dict[str, list[np.ndarray]] = {}
    for block in range(num_blocks):
        terms_BxExD = terms_BxLxExD[:, block]
        sums = CkaSums.of(lambda of=terms_BxExD: batches(of, names))
        parts = [norm_table(with_non_patch(part), full=names) for part in batches(terms_BxExD, names)]
        found = NormTable.joined(parts)
        table = found.summary()
        for name in (*names, NON_PATCH):
            members = [name] if name != NON_PATCH else [one for one in names if one != "patches"]
            pair = sums.cka(names, members), sums.unbiased_cka(names, members)
            norm = table["norm"][name]
            size = (norm.mean, norm.std) if norm.mean else (None, None)
            rows.append((block + 1, name, *size, table["cosine"][name].mean, *pair))
            cka.setdefault(name, []).append(pair)
            norms.setdefault(name, []).append(np.quantile(found.norm[name], _QUANTILES))
    first, last = ({name: cka[name][at][0] for name in ("patches", "skip")} for at in (0, -1))
    return Rows(
        tables={"Terms of cls by layer": rows},
        text="the CKA of cls after attention with what it gets from patches is "
        f"{number(first['patches'])} in the first block and {number(last['patches'])} in the last, and with "
        f"the skip connection {number(first['skip'])} and {number(last['skip'])}",
        compared=last["patches"],
        count=counted(len(terms_BxLxExD), "image"),
        values=(cka, {name: np.array(by_layer) for name, by_layer in norms.items()}),
    )


def _draw_cka(axes: Axes, cka: Mapping[str, list[tuple[float | None, float | None]]]) -> None:
    for place, name in enumerate(_SHOWN):
        if any(biased is not None for biased, _ in cka.get(name, ())):
            biased_L, unbiased_L = np.array(cka[name], np.float64).T  # None becomes NaN
            blocks = np.arange(1, len(biased_L) + 1)
            # Nearly the skip connection where other terms are small, which a full line would hide.
            line = "--" if name == NON_PATCH else "o-"
            axes.plot(blocks, biased_L, line, ms=3, color=color_of(place), label=name)
            axes.plot(blocks, unbiased_L, ":", color=color_of(place))
    axes.set(ylim=(min(0.0, axes.get_ylim()[0]), 1.02), xlabel="block", ylabel="CKA with cls")
    integer_ticks(axes)


def _draw_norms(axes: Axes, norms: Mapping[str, np.ndarray]) -> None:
    for place, name in enumerate(_SHOWN):
        if name in norms and norms[name].any() and name != NON_PATCH:
            low_L, median_L, high_L = np.where(norms[name] > 0, norms[name], np.nan).T
            blocks = np.arange(1, len(median_L) + 1)
            ends = median_L - low_L, high_L - median_L
            axes.errorbar(
                blocks, median_L, ends, fmt="o-", ms=3, capsize=2, color=color_of(place), label=name
            )
    axes.set(xlabel="block", ylabel="norm of the term")
    plain_log(axes.yaxis)
    integer_ticks(axes)


def _draw(found: Found) -> Pictures:
    for one in found:
        for name, draw, values, caption in (
            (
                "cka",
                _draw_cka,
                one.values[0],
                "linear CKA of each term with cls after the attention of each block; dotted: unbiased.",
            ),
            (
                "norms",
                _draw_norms,
                one.values[1],
                "norms of the terms of cls by block: median over images, and the middle 90 % (bars).",
            ),
        ):
            figure, axes = new_axes()
            draw(axes, values)
            legend_above(axes, ncols=3)
            yield Picture(name=f"{name}-{one.name}", caption=f"{one.name}: {caption}", figure=figure)


EXPERIMENT = Experiment(
    question="In which block does cls get what from where?",
    answers=f"{DECOUPLING}, figures 5a, 6, 7 and 8, in every block",
    definition="The terms of cls-terms, in every block; their sum is cls between its attention and its MLP. "
    "CKA is that of each term with the sum, over the first 2,000 images; the unbiased estimator is that of "
    f"cls-terms. '{NON_PATCH}' is the sum of all terms but the patches'. In blocks before model.cls_blocks "
    "cls gets nothing. A term that does not vary has no CKA, such as the skip connection of the first block, "
    "which is the same for every image.",
    tables={
        "Terms of cls by layer": "model | block | term | norm | std | cosine with the sum | CKA with the sum"
        " | unbiased"
    },
    measure=_measure,
    features=("terms_LxExD",),
    draw=_draw,
    compares="CKA of patches with cls in the last block",
)
