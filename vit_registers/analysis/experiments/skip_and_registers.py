"""skip-and-registers: whether the skip connection, registers and patches give cls the same. No JAX."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.cls_terms import batches
from vit_registers.analysis.experiments.experiment import DECOUPLING, Experiment
from vit_registers.analysis.measures.decoupling import CkaSums
from vit_registers.analysis.measures.subspaces import Angles, canonical_angles, rank_correlation
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import GREY, color_of
from vit_registers.analysis.report.figures import integer_ticks, legend_above, new_axes
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject

_TERMS = ("patches", "registers", "skip")
_DIRECTIONS = 10  # of a subspace, at most; and at most a quarter of the width


class _Pair(NamedTuple):
    """Two terms in one block."""

    correlation: float | None
    cka: float | None
    angles: Angles | None


def _measure(subject: Subject, options: Options) -> Rows:
    terms_BxLxExD, names = subject.store.read("terms_LxExD"), subject.term_names()
    shown = [name for name in _TERMS if name in names]
    most = max(1, min(_DIRECTIONS, terms_BxLxExD.shape[-1] // 4))
    found: dict[str, list[_Pair]] = {}
    for block in range(terms_BxLxExD.shape[1]):
        of_block = terms_BxLxExD[:, block]
        sums = CkaSums.of(
            lambda of=of_block: ({name: one[name] for name in shown} for one in batches(of, names))
        )
        norms = {name: _norms(of_block[:, names.index(name)]) for name in shown}
        axes = {name: sums.leading_directions([name], most) for name in shown}
        for a, b in itertools.combinations(shown, 2):
            one, other = axes[a], axes[b]
            pair = _Pair(
                rank_correlation(norms[a], norms[b]),
                sums.unbiased_cka([a], [b]),
                None if one is None or other is None else canonical_angles(one, other),
            )
            found.setdefault(f"{a} and {b}", []).append(pair)
    rows = [
        (block + 1, name, *_cells(pair)) for name, pairs in found.items() for block, pair in enumerate(pairs)
    ]
    return Rows(
        tables={"Terms of cls, two by two": rows},
        text="in the last block "
        + "; ".join(f"{name} have {_clause(pairs[-1])}" for name, pairs in found.items()),
        compared=_overlap(found["patches and registers"][-1]) if "registers" in names else None,
        count=counted(len(terms_BxLxExD), "image"),
        values=found,
    )


def _norms(term_BxD: np.ndarray) -> np.ndarray:
    return np.linalg.norm(term_BxD.astype(np.float64), axis=-1)


def _overlap(pair: _Pair) -> float | None:
    return None if pair.angles is None else pair.angles.overlap


def _clause(pair: _Pair) -> str:
    by_chance = "" if pair.angles is None else f" ({number(pair.angles.by_chance)} by chance)"
    correlation = number(pair.correlation)
    return (
        f"a rank correlation of norms of {correlation} and an overlap of {number(_overlap(pair))}{by_chance}"
    )


def _cells(pair: _Pair) -> tuple[float | int | None, ...]:
    angles = pair.angles
    if angles is None:
        return pair.correlation, pair.cka, None, None, None, None, None, None
    degrees_K = angles.degrees_K
    ends = float(degrees_K[0]), float(np.median(degrees_K)), float(degrees_K[-1])
    return pair.correlation, pair.cka, *ends, angles.overlap, angles.by_chance, len(degrees_K)


def _draw_angles(axes: Axes, found: Mapping[str, list[_Pair]]) -> None:
    for place, (name, pairs) in enumerate(found.items()):
        missing = [np.nan] * 3
        low_L, median_L, high_L = np.array(
            [_cells(pair)[2:5] if pair.angles else missing for pair in pairs]
        ).T
        blocks = np.arange(1, len(pairs) + 1) + 0.05 * (place - (len(found) - 1) / 2)
        ends = median_L - low_L, high_L - median_L
        axes.errorbar(blocks, median_L, ends, fmt="o-", ms=3, capsize=2, color=color_of(place), label=name)
    chances = [pair.angles.by_chance for pairs in found.values() for pair in pairs if pair.angles is not None]
    if chances:
        by_chance = np.rad2deg(np.arccos(np.sqrt(np.mean(chances))))
        axes.axhline(by_chance, color=GREY, lw=1, ls=":", label="random directions, on average")
    axes.set(ylim=(0, 92), yticks=(0, 30, 60, 90), xlabel="block", ylabel="canonical angles, degrees")
    integer_ticks(axes)


def _draw_dependence(axes: Axes, found: Mapping[str, list[_Pair]]) -> None:
    for place, (name, pairs) in enumerate(found.items()):
        blocks, color = np.arange(1, len(pairs) + 1), color_of(place)
        correlations = np.array([pair.correlation for pair in pairs], np.float64)
        cka = np.array([pair.cka for pair in pairs], np.float64)
        axes.plot(blocks, correlations, "o-", ms=3, color=color, label=name)
        axes.plot(blocks, cka, "s:", ms=3, color=color)
    axes.axhline(0, color="black", lw=0.5)
    axes.set(ylim=(-1.02, 1.02), xlabel="block", ylabel="correlation")
    integer_ticks(axes)


def _draw(found: Found) -> Pictures:
    for one in found:
        for name, draw, caption in (
            (
                "angles",
                _draw_angles,
                "canonical angles between the leading directions of two terms of cls: median, and from the "
                "smallest to the largest (bars). 90 degrees: no direction in common.",
            ),
            (
                "correlation",
                _draw_dependence,
                "rank correlation over images of the norms of two terms (solid), and their unbiased CKA "
                "(dotted).",
            ),
        ):
            figure, axes = new_axes()
            draw(axes, one.values)
            legend_above(axes, ncols=1)
            yield Picture(name=f"{name}-{one.name}", caption=f"{one.name}: {caption}", figure=figure)


EXPERIMENT = Experiment(
    question="Do the skip connection, registers and patches give cls the same, or different things?",
    answers=f"{DECOUPLING}, section 5: directions of variance, and whether skip and registers depend on each "
    "other",
    definition="Two terms of cls (cls-terms) in each block, over the first 2,000 images. Correlation is "
    "Spearman's, of their norms: positive, if images where one is large have the other large too. CKA is "
    "unbiased. The canonical angles are those between the first principal axes of both terms over images, "
    f"{_DIRECTIONS} at most and a quarter of the width. Overlap is the mean squared cosine of the angles; by "
    "chance, that of random directions, which is their number / the width. A term that does not vary has no "
    "angles.",
    tables={
        "Terms of cls, two by two": "model | block | terms | correlation of norms | unbiased CKA"
        " | smallest angle | median | largest | overlap | by chance | angles"
    },
    measure=_measure,
    features=("terms_LxExD",),
    draw=_draw,
    compares="overlap of patches and registers in the last block",
)
