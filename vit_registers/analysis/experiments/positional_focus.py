"""positional-focus: where cls and the registers look in the last block, on average over images. No JAX."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.attention_maps import MOST_QUERIES
from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures.focus import MapSums, focus, map_similarity
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject, in_parts, mean_maps, queries

MIDDLE = "middle patch"


class MeanMaps(NamedTuple):
    """The attention of a model in the last block, over all images."""

    names: list[str]  # of the E queries, the last of which is MIDDLE
    mean_ExHxW: np.ndarray
    overlap_B: dict[str, np.ndarray]  # registers, summaries: the mean cosine of two maps of an image


def measure_maps(subject: Subject) -> MeanMaps:
    """The mean maps of all queries and of the middle patch, and how alike the maps of an image are.

    `overlap_B` lacks a kind of which the model has fewer than two.
    """
    sums, layout = MapSums(), subject.layout
    parts: dict[str, list[np.ndarray]] = {"registers": [], "summaries": []}
    for images in in_parts(subject.store.num_read()):
        maps_BxExHxW = mean_maps(subject, images)
        for kind, similar in parts.items():
            likeness_B = map_similarity(maps_BxExHxW[:, getattr(layout, kind)])
            similar += [] if likeness_B is None else [likeness_B]
        middle = subject.store.read("center_T")[images, layout.patches].reshape(-1, 1, *layout.patch_grid)
        sums.add(np.concatenate([maps_BxExHxW, middle], axis=1))
    overlap_B = {kind: np.concatenate(similar) for kind, similar in parts.items() if similar}
    return MeanMaps([*queries(subject), MIDDLE], sums.mean_ExHxW, overlap_B)


def focus_rows(maps: MeanMaps) -> list[tuple[str, float | None, str, float]]:
    """Of each query: name, entropy over that of a uniform map, centre of mass, its distance to the middle."""
    rows, found = [], focus(maps.mean_ExHxW)
    for i, name in enumerate(maps.names):
        y, x = found.centre_patches_Ex2[i]
        entropy = None if found.entropy_share_E is None else float(found.entropy_share_E[i])
        rows.append((name, entropy, f"{y:.2f}, {x:.2f}", float(found.distance_patches_E[i])))
    return rows


def _measure(subject: Subject, options: Options) -> Rows:
    maps = measure_maps(subject)
    means = {kind: summarize_values(overlap_B).mean for kind, overlap_B in maps.overlap_B.items()}
    likeness, rows = means.get("registers"), []
    for name, *numbers in focus_rows(maps):
        own = {"register": "registers", "summary": "summaries"}.get(name.split()[0], "")
        rows.append((name, *numbers, means.get(own)))
    query, entropy, _, distance, _ = rows[0]
    alike = "" if likeness is None else f"; the maps of two registers have a cosine of {number(likeness)}"
    few = f"{subject.name}: fewer than two registers, whose maps could be compared"
    return Rows(
        tables={"Positional focus": rows},
        text=f"the mean map of {query} has {number(entropy)} of the entropy of a uniform map, and its centre "
        f"lies {number(distance)} patches from the middle{alike}",
        compared=entropy,
        count=counted(subject.store.num_read(), "image"),
        values=(maps.names, subject.layout.num_tokens * maps.mean_ExHxW),
        gaps=[few] if likeness is None else [],
    )


def _draw(found: Found) -> Pictures:
    """A row for each model, a column for each query, on one scale."""
    by_model = [dict(zip(*one.values, strict=True)) for one in found]
    every = list(dict.fromkeys(name for maps in by_model for name in maps if name != MIDDLE))
    columns = [*every[:MOST_QUERIES], MIDDLE]
    figure = tiles(
        [[None] * len(columns)] * len(found),
        [[maps.get(column) for column in columns] for maps in by_model],
        rows=[one.name for one in found],
        columns=columns,
        limits=(0.0, max(float(map_HxW.max()) for maps in by_model for map_HxW in maps.values())),
        label="attention x uniform",
    )
    left_out = f" The first {MOST_QUERIES} of {len(every)} tokens." if len(every) > MOST_QUERIES else ""
    caption = (
        "Mean maps of attention over all images, of each model (row) and token (column). 1: as much as if "
        f"attention were uniform.{left_out}"
    )
    return [Picture(name="focus", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Where do they look on average, and do registers look at different places?",
    answers=f"{REGISTERS}, figure 16; {SMALL}, figures 10 and 13",
    definition="Attention maps of the last block, mean over heads and all images; entropy and centre of "
    "mass are of that mean map. Queries are cls, each register, each summary, and the patch in the middle "
    "of the grid (below and right of the centre on even sides). The cosine is between the maps of two "
    "registers, or of two summaries, on the same image, mean over all pairs and images.",
    tables={
        "Positional focus": "model | query | entropy / uniform | centre (y, x), patches"
        " | from the middle, patches | cosine between tokens of its kind"
    },
    measure=_measure,
    features=("attention_NxExT", "center_T"),
    needs_any=("cls", "registers", "summaries"),
    draw=_draw,
    compares="entropy of the mean map over that of a uniform map",
)
