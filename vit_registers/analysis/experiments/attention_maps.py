"""attention-maps: where cls and the registers look in the last block, on single images. No JAX."""

from collections.abc import Sequence

import numpy as np

from vit_registers.analysis.experiments.attention_grids import (
    draw_heads,
    draw_maps,
    head_maps,
    mean_maps,
    queries,
)
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.published.tables import REGISTERS, SMALL
from vit_registers.analysis.report.finding import counted, number, percent
from vit_registers.analysis.report.result import Picture, Rows
from vit_registers.analysis.subject import Options, Subject, in_parts


def _measure(subject: Subject, options: Options) -> Rows:
    maps_BxExHxW = mean_maps(subject, slice(0, options.num_examples))
    images, names = subject.example_NxHxWxC[: len(maps_BxExHxW)], queries(subject)
    rows = _by_head(subject)
    query, share, _, _, peak, *_ = rows[0]
    return Rows(
        tables={"Attention by head": [(subject.name, *row) for row in rows]},
        text=f"{query} sends {number(percent(share), '%')} of its attention to patches, and "
        f"{number(percent(peak), '%')} of that to a single patch",
        compared=percent(share),
        count=counted(subject.store.num_read(), "image"),
        values=(images, maps_BxExHxW, head_maps(subject, slice(0, 1))[0], names),
    )


def _draw(found: Sequence[Rows]) -> list[Picture]:
    pictures = []
    for one in found:
        images, maps_BxExHxW, maps_NxExHxW, names = one.values
        caption = (
            f"{one.name}: attention of the last block, mean over heads, over the image; each map has its own "
            "scale from 0 to the maximum below it."
        )
        figure = draw_maps(images, maps_BxExHxW, names)
        pictures.append(Picture(name=f"maps-{one.name}", caption=caption, figure=figure))
        caption = f"{one.name}: the same for each head, in the first image."
        figure = draw_heads(images[0], maps_NxExHxW, names)
        pictures.append(Picture(name=f"heads-{one.name}", caption=caption, figure=figure))
    return pictures


def _by_head(subject: Subject) -> list[tuple[str, *tuple[float | None, ...]]]:
    """For each query: mean, lowest and highest head of the share of patches; of its part on one patch."""
    images, num_heads = subject.store.num_read(), subject.store.read("attention_NxExT").shape[1]
    share_NxE, top_NxE = np.zeros((2, num_heads, len(queries(subject))))
    for part in in_parts(images):
        maps_BxNxExHxW = head_maps(subject, part).astype(np.float64)
        share_NxE += maps_BxNxExHxW.sum(axis=(0, 3, 4))
        top_NxE += maps_BxNxExHxW.max(axis=(3, 4)).sum(axis=0)
    share_NxE, top_NxE = share_NxE / images, top_NxE / images
    part_NxE = np.divide(top_NxE, share_NxE, out=np.full_like(top_NxE, np.nan), where=share_NxE > 0)
    return [
        (
            name,
            *(None if np.isnan(x).any() else float(f(x)) for x in values for f in (np.mean, np.min, np.max)),
        )
        for name, *values in zip(queries(subject), share_NxE.T, part_NxE.T, strict=True)
    ]


EXPERIMENT = Experiment(
    question="Where do cls and the registers look?",
    answers=f"{REGISTERS}, figures 1, 2, 9, 18 and 19; {SMALL}, figures 1 and 7",
    definition="Softmax weights of the last block in float32, of cls and each register to the patches; "
    "not divided by their sum, so that a map sums to the share of attention that patches get. The "
    "table has that share, mean over images, and the part of it that is on the patch that gets most (a "
    "ratio of such means): of all heads, and of the heads where they are lowest and highest.",
    tables={
        "Attention by head": (
            "model | query | to patches | lowest head | highest head | on one patch"
            " | in the lowest head | in the highest head"
        ),
    },
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers"),
    draw=_draw,
    compares="share of attention that the first query (cls if there is one) sends to patches, %",
)
