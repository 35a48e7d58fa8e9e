"""attention-maps: where cls and the registers look in the last block, on single images. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import maps_over_images, new_grid, set_titles, show_image
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject, head_maps, in_parts, mean_maps, queries


def _measure(subject: Subject, options: Options) -> Rows:
    maps_BxExHxW = mean_maps(subject, slice(0, options.num_examples))
    images, rows = subject.example_NxHxWxC[: len(maps_BxExHxW)], _by_head(subject)
    query, share, _, _, peak, *_ = rows[0]
    return Rows(
        tables={"Attention by head": rows},
        text=f"{query} sends {number(percent(share), '%')} of its attention to patches, and "
        f"{number(percent(peak), '%')} of that to a single patch",
        compared=percent(share),
        count=counted(subject.store.num_read(), "image"),
        values=(images, maps_BxExHxW, head_maps(subject, slice(0, 1))[0], queries(subject)),
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
        ends = [(float(x.mean()), float(x.min()), float(x.max())) for x in columns]
        rows.append((name, *(None if np.isnan(value) else value for three in ends for value in three)))
    return rows


def _draw(found: Found) -> Pictures:
    for one in found:
        images, maps_BxExHxW, maps_NxExHxW, names = one.values
        yield Picture(
            name=f"maps-{one.name}",
            caption=f"{one.name}: attention of the last block, mean over heads, over the image; each map has "
            "its own scale from 0 to the maximum below it.",
            figure=maps_over_images(images, maps_BxExHxW, names),
        )
        yield Picture(
            name=f"heads-{one.name}",
            caption=f"{one.name}: the same for each head, in the first image.",
            figure=_draw_heads(images[0], maps_NxExHxW, names),
        )


def _draw_heads(image: np.ndarray, maps_NxExHxW: np.ndarray, names: Sequence[str]) -> Figure:
    """The image, then a row for each query with its map in each head, each map on its own scale."""
    heads, rows = len(maps_NxExHxW), len(names)
    figure, grid = new_grid(rows, heads + 1, (1.05 * (heads + 1) + 0.4, 1.3 * rows + 0.3))
    for axes in grid[:, 0]:
        axes.set_axis_off()
    show_image(grid[0, 0], image)
    for row, name, maps_NxHxW in zip(grid, names, np.moveaxis(maps_NxExHxW, 1, 0), strict=True):
        row[1].set_ylabel(name, fontsize=8)
        for axes, values in zip(row[1:], maps_NxHxW, strict=True):
            axes.imshow(values, cmap="inferno", vmin=0)
            axes.set_xlabel(f"max {values.max():.3f}", fontsize=6, labelpad=1)
    set_titles(grid[0, 1:], [f"head {head}" for head in range(heads)], fontsize=8)
    return figure


EXPERIMENT = Experiment(
    question="Where do cls and the registers look?",
    answers=f"{REGISTERS}, figures 1, 2, 9, 18 and 19; {SMALL}, figures 1 and 7",
    definition="Softmax weights of the last block in float32, of cls and each register to the patches; "
    "not divided by their sum, so that a map sums to the share of attention that patches get. The "
    "table has that share, mean over images, and the part of it that is on the patch that gets most (a "
    "ratio of such means): of all heads, and of the heads where they are lowest and highest.",
    tables={
        "Attention by head": "model | query | to patches | lowest head | highest head | on one patch"
        " | in the lowest head | in the highest head"
    },
    measure=_measure,
    features=("attention_NxExT",),
    needs_any=("cls", "registers"),
    draw=_draw,
    compares="share of attention that the first query (cls if there is one) sends to patches, %",
)
