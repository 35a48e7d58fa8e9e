"""attention-maps: where cls, registers and summaries look in the last block, on single images. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject, head_maps, in_parts, mean_maps, queries

MOST_QUERIES = 12  # tokens that the pictures show; the table has all


class _Shown(NamedTuple):
    """What the pictures show of a model."""

    images: np.ndarray
    maps_BxExHxW: np.ndarray  # mean over heads
    maps_NxExHxW: np.ndarray  # of each head, in the first image
    names: list[str]  # of the E queries
    num_tokens: int


def _measure(subject: Subject, options: Options) -> Rows:
    maps_BxExHxW = mean_maps(subject, slice(0, options.num_examples))
    images, rows = subject.example_NxHxWxC[: len(maps_BxExHxW)], _by_head(subject)
    query, share, _, _, peak, *_ = rows[0]
    return Rows(
        tables={"Attention by head": rows},
        text=f"{query} sends {number(share, '%')} of its attention to patches, and "
        f"{number(peak, '%')} of that to a single patch",
        compared=share,
        count=counted(subject.store.num_read(), "image"),
        values=_Shown(
            images,
            maps_BxExHxW,
            head_maps(subject, slice(0, 1))[0],
            queries(subject),
            subject.layout.num_tokens,
        ),
    )


def _by_head(subject: Subject) -> list[tuple]:
    """For each query: mean, lowest and highest head of the share of patches; of its part on one patch."""
    images, num_heads = subject.store.num_read(), subject.store.read("attention_NxExT").shape[1]
    share_NxE, top_NxE = np.zeros((2, num_heads, len(queries(subject))))
    for part in in_parts(images):
        maps_BxNxExHxW = head_maps(subject, part).astype(np.float64)
        share_NxE += maps_BxNxExHxW.sum(axis=(0, 3, 4))
        top_NxE += maps_BxNxExHxW.max(axis=(3, 4)).sum(axis=0)
    share_NxE, top_NxE = share_NxE / images, top_NxE / images
    part_NxE = np.divide(top_NxE, share_NxE, out=np.full_like(top_NxE, np.nan), where=share_NxE > 0)
    rows = []
    for name, *columns in zip(queries(subject), share_NxE.T, part_NxE.T, strict=True):
        ends = [(100 * float(x.mean()), 100 * float(x.min()), 100 * float(x.max())) for x in columns]
        rows.append((name, *(None if np.isnan(value) else value for three in ends for value in three)))
    return rows


def _draw(found: Found) -> Pictures:
    tokens = {one.name: one.values.num_tokens for one in found}
    most = max(float(one.values.maps_BxExHxW.max()) * tokens[one.name] for one in found)
    for one in found:
        shown, times = one.values, tokens[one.name]
        names = shown.names[:MOST_QUERIES]
        left_out = (
            f" The first {len(names)} of {len(shown.names)} tokens." if shown.names[len(names) :] else ""
        )
        images, count = list(shown.images), len(shown.images)
        yield Picture(
            name=f"maps-{one.name}",
            caption=f"{one.name}: attention of the last block, mean over heads, of each token (row) to the "
            f"patches of each image (column). 1: as much as if attention were uniform.{left_out}",
            figure=tiles(
                [images] * (1 + len(names)),
                [[None] * count, *(list(times * shown.maps_BxExHxW[:, i]) for i in range(len(names)))],
                rows=("image", *names),
                limits=(0.0, most),
                label="attention x uniform",
                alpha=0.8,
            ),
            is_headline=True,
        )
        maps_NxExHxW = times * shown.maps_NxExHxW[:, : len(names)]
        yield Picture(
            name=f"heads-{one.name}",
            caption=f"{one.name}: the same for each head (column), in the first image.{left_out}",
            figure=tiles(
                [[None] * len(maps_NxExHxW)] * len(names),
                [list(maps_NxExHxW[:, i]) for i in range(len(names))],
                rows=names,
                columns=[f"head {head}" for head in range(len(maps_NxExHxW))],
                limits=(0.0, float(maps_NxExHxW.max())),
                label="attention x uniform",
            ),
        )


EXPERIMENT = Experiment(
    question="Where do cls, registers and summaries look?",
    answers=f"{REGISTERS}, figures 1, 2, 9, 18 and 19; {SMALL}, figures 1 and 7",
    definition="Softmax weights of the last block in float32, of cls, each register and each summary to the "
    "patches; not divided by their sum, so that a map sums to the share of attention that patches get. The "
    "table has that share, mean over images, and the part of it that is on the patch that gets most (a "
    "ratio of such means): of all heads, and of the heads where they are lowest and highest.",
    tables={
        "Attention by head": "model | query | to patches, % | lowest head, % | highest head, %"
        " | on one patch, % | in the lowest head, % | in the highest head, %"
    },
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers", "summaries"),
    draw=_draw,
    compares="share of attention that the first query (cls if there is one) sends to patches, %",
)
