"""Where cls and the registers look in the last block, on single images. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.attention_grids import (
    draw_heads,
    draw_maps,
    head_maps,
    mean_maps,
    queries,
)
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts


def maps(subjects: list[Subject], options: Options) -> Result:
    """The attention maps of cls and of each register, over the images; in the first image for each head."""
    rows, pictures = [], []
    for subject in subjects:
        maps_BxExHxW = mean_maps(subject, slice(0, options.num_examples))
        images, names = subject.example_NxHxWxC[: len(maps_BxExHxW)], queries(subject)
        pictures.append(
            Picture(
                name=f"maps-{subject.name}",
                caption=f"{subject.name}: attention of the last block, mean over heads, over the image; each "
                "map has its own scale from 0 to the maximum below it.",
                figure=draw_maps(images, maps_BxExHxW, names),
            )
        )
        maps_NxExHxW = head_maps(subject, slice(0, 1))[0]
        pictures.append(
            Picture(
                name=f"heads-{subject.name}",
                caption=f"{subject.name}: the same for each head, in the first image.",
                figure=draw_heads(images[0], maps_NxExHxW, names),
            )
        )
        rows += [(subject.name, *row) for row in _by_head(subject)]
    columns = ("model", "query", "to patches", "lowest head", "highest head")
    columns += ("on one patch", "in the lowest head", "in the highest head")
    return Result(
        definition="Softmax weights of the last block in float32, of cls and each register to the patches; "
        "not divided by their sum, so that a map sums to the share of attention that patches get. The "
        "table has that share, mean over images, and the part of it that is on the patch that gets most (a "
        "ratio of such means): of all heads, and of the heads where they are lowest and highest.",
        tables=[Table(title="Attention by head", columns=columns, rows=rows)],
        pictures=pictures,
    )


def _by_head(subject: Subject) -> list[tuple[str | float | None, ...]]:
    """For each query: mean, lowest and highest head of the share of patches; of its part on one patch."""
    share, top, images = 0.0, 0.0, subject.store.num_read()
    for part in in_parts(images):
        maps_BxNxExHxW = head_maps(subject, part).astype(np.float64)
        share = share + maps_BxNxExHxW.sum(axis=(0, 3, 4))
        top = top + maps_BxNxExHxW.max(axis=(3, 4)).sum(axis=0)
    share_NxE, top_NxE = share / images, top / images
    part_NxE = np.divide(top_NxE, share_NxE, out=np.full_like(top_NxE, np.nan), where=share_NxE > 0)
    return [
        (
            name,
            *(None if np.isnan(x).any() else float(f(x)) for x in values for f in (np.mean, np.min, np.max)),
        )
        for name, *values in zip(queries(subject), share_NxE.T, part_NxE.T, strict=True)
    ]
