"""cls-terms: what cls is made of after the last attention, as a sum of terms. No JAX."""

from collections.abc import Iterator, Mapping

import numpy as np

from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import CkaSums, NormTable, norm_table
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import grouped_bars, grouped_violins, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts

NON_PATCH = "non-patch"  # the sum of all terms but that of the patches
_NOT_ATTENTION = ("skip", "bias")
_BIASED = 0.05  # a CKA that is higher than the unbiased one by more than this is named


def batches(terms_BxExD: np.ndarray, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
    """The terms by name, a part of the images at a time."""
    for images in in_parts(len(terms_BxExD)):
        part_BxExD = terms_BxExD[images]
        yield {name: part_BxExD[:, i] for i, name in enumerate(names)}


def with_non_patch(part: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The terms, and NON_PATCH (arXiv:2505.05892, equation 6), which has registers and the bias too."""
    others = [term_BxD.astype(np.float64) for name, term_BxD in part.items() if name != "patches"]
    return {**part, NON_PATCH: np.sum(others, axis=0)}


def _measure(subject: Subject, options: Options) -> Rows:
    names, feature = subject.term_names(), "terms_ExD"
    if options.is_before_projection:
        names, feature = tuple(subject.layout.groups), "head_terms_GxD"
    terms_BxExD = subject.store.read(feature)
    attention = [name for name in names if name not in _NOT_ATTENTION]
    sums = CkaSums.of(lambda: batches(terms_BxExD, names))
    parts = (norm_table(with_non_patch(part), full=names) for part in batches(terms_BxExD, names))
    norms = NormTable.joined(list(parts))
    table, rows, to_attention, to_sum = norms.summary(), [], {}, {}
    for name in (*names, NON_PATCH):
        members = [name] if name != NON_PATCH else [one for one in names if one != "patches"]
        norm, cosine = table["norm"][name], table["cosine"][name]
        if set(members) <= set(attention):
            to_attention[name] = sums.cka(attention, members), sums.unbiased_cka(attention, members)
        if not options.is_before_projection:
            to_sum[name] = sums.cka(names, members), sums.unbiased_cka(names, members)
        size = (norm.mean, norm.std) if norm.mean else (None, None)  # 0: there is no such term
        nothing = (None, None)
        rows.append((name, *size, cosine.mean, *to_attention.get(name, nothing), *to_sum.get(name, nothing)))
    shown = {name: pair for name, pair in to_attention.items() if name in attention and pair[0] is not None}
    clauses = ", ".join(f"{number(biased)} for {name}" for name, (biased, _) in shown.items())
    patches = shown.get("patches", (None, None))
    return Rows(
        tables={"Terms of cls": rows},
        text=f"the CKA with the output of attention is {clauses or 'not defined'}",
        compared=patches[0],
        count=counted(len(terms_BxExD), "image"),
        values={
            "attention": shown,
            "sum": {name: pair for name, pair in to_sum.items() if pair[0] is not None},
            "norms": {name: norms.norm[name] for name in (*names, NON_PATCH) if name != "bias"},
        },
        cautions=_biased(subject, to_attention, to_sum),
    )


def _biased(subject: Subject, *given: Mapping[str, tuple[float | None, float | None]]) -> list[str]:
    """A caution that names the CKA with the largest bias, if it is above _BIASED."""
    gaps = {
        f"{name} with {whole}": biased - unbiased
        for whole, pairs in zip(("attention", "the sum"), given, strict=True)
        for name, (biased, unbiased) in pairs.items()
        if biased is not None and unbiased is not None
    }
    worst = max(gaps, key=lambda name: gaps[name], default="")
    if not worst or gaps[worst] < _BIASED:
        return []
    return [
        f"{subject.name}: CKA is biased upward with few images, by {number(gaps[worst])} for {worst}: read "
        "the unbiased columns, or give more images"
    ]


def _cka_picture(found: Found, whole: str, name: str, words: str) -> Picture:
    figure, axes = new_axes()
    grouped_bars(
        axes,
        found,
        lambda one: {term: biased for term, (biased, _) in one.values[whole].items()},
        dots_of=lambda one: {term: unbiased for term, (_, unbiased) in one.values[whole].items()},
    )
    axes.set(ylim=(min(0.0, axes.get_ylim()[0]), 1.03), ylabel=f"CKA with {words}")
    axes.tick_params(axis="x", rotation=20)
    legend_above(axes)
    caption = (
        f"Linear CKA of each term of cls with {words}; 1: the same up to a rotation and a factor. Dots: the "
        "unbiased estimate."
    )
    return Picture(name=name, caption=caption, figure=figure)


def _draw(found: Found) -> Pictures:
    yield _cka_picture(found, "attention", "cka", "the attention's output")
    if any(one.values["sum"] for one in found):
        yield _cka_picture(found, "sum", "cka-with-the-sum", "cls after it")
    groups = list(dict.fromkeys(name for one in found for name in one.values["norms"]))
    figure, axes = new_axes()
    grouped_violins(axes, found, groups, lambda one: one.values["norms"])
    axes.set_ylabel("norm of the term")
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", rotation=20)
    legend_above(axes)
    caption = (
        "Norms of the terms of cls: the distribution over images, with the median and the ends. Attention to "
        "the skip connection has no weights; norms are in their place."
    )
    yield Picture(name="norms", caption=caption, figure=figure)


def _definition(options: Options) -> str:
    space = (
        "before the output projection, with the heads joined (--before_projection), where the skip "
        "connection and the projection's bias are no terms"
        if options.is_before_projection
        else "after the output projection and LayerScale; the projection's bias; and the skip connection"
    )
    return (
        "cls after the attention of the last block, before its MLP, is the sum of: its attention to each "
        f"token group (weights of the other groups set to zero, not divided again), {space}. '{NON_PATCH}' "
        "is the sum of all terms but the patches' (equation 6, where registers are none). Linear CKA over "
        "images, of each term with the attention's output (the sum without skip and bias) and with the "
        "whole sum. A term that is zero in every image, such as the bias of a model that has none, has no "
        "numbers. CKA of N images in D dimensions is biased upward: unrelated noise has about D / (N + D). "
        "The unbiased columns have the estimator of HSIC of Song et al. (2012), as in arXiv:2010.15327; the "
        "paper has the biased one."
    )


EXPERIMENT = Experiment(
    question="What is the output of cls made of: patches, registers, or what it was before?",
    answers=f"{DECOUPLING}, figures 3a, 5a, 6, 7 and 8",
    definition=_definition,
    tables={
        "Terms of cls": "model | term | norm | std | cosine with the sum | CKA with attention | unbiased"
        " | CKA with the sum | unbiased CKA with the sum"
    },
    measure=_measure,
    features=("terms_ExD", "head_terms_GxD"),
    draw=_draw,
    compares="CKA of patches with the output of attention",
)
