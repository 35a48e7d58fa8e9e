"""positional-focus: where cls and the registers look in the last block, on average over images. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment
from vit_registers.analysis.measures.focus import MapSums, focus, map_similarity
from vit_registers.analysis.measures.severity import summarize_values
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import new_grid, set_titles
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject, in_parts, mean_maps, queries

MIDDLE = "middle patch"


def _measure(subject: Subject, options: Options) -> Rows:
    sums, similar, layout = MapSums(), [], subject.layout
    for images in in_parts(subject.store.num_read()):
        maps_BxExHxW = mean_maps(subject, images)
        likeness_B = map_similarity(maps_BxExHxW[:, int(layout.has_cls) :])  # None: fewer than two registers
        similar += [] if likeness_B is None else [likeness_B]
        middle = subject.store.read("center_T")[images, layout.patches].reshape(-1, 1, *layout.patch_grid)
        sums.add(np.concatenate([maps_BxExHxW, middle], axis=1))
    likeness = summarize_values(np.concatenate(similar)).mean if similar else None
    names, rows, found = [*queries(subject), MIDDLE], [], focus(sums.mean_ExHxW)
    for i, name in enumerate(names):
        y, x = found.centre_patches_Ex2[i]
        entropy = None if found.entropy_share_E is None else float(found.entropy_share_E[i])
        of_registers = likeness if name.startswith("register") else None
        distance = float(found.distance_patches_E[i])
        rows.append((name, entropy, f"{y:.2f}, {x:.2f}", distance, of_registers))
    query, entropy, _, distance, _ = rows[0]
    alike = "" if likeness is None else f"; the maps of two registers have a cosine of {number(likeness)}"
    few = f"{subject.name}: fewer than two registers, whose maps could be compared"
    return Rows(
        tables={"Positional focus": rows},
        text=f"the mean map of {query} has {number(entropy)} of the entropy of a uniform map, and its centre "
        f"lies {number(distance)} patches from the middle{alike}",
        compared=entropy,
        count=counted(subject.store.num_read(), "image"),
        values=(names, sums.mean_ExHxW),
        gaps=[few] if likeness is None else [],
    )


def _draw(found: Found) -> Pictures:
    for one in found:
        names, mean_ExHxW = one.values
        figure, (grid,) = new_grid(1, len(names), (1.7 * len(names) + 0.6, 2.1))
        set_titles(grid, names)
        for axes, values in zip(grid, mean_ExHxW, strict=True):
            axes.imshow(values, cmap="inferno", vmin=0)
        caption = f"{one.name}: mean maps over all images; each map has its own scale."
        yield Picture(name=f"focus-{one.name}", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="Where do they look on average, and do registers look at different places?",
    answers=f"{REGISTERS}, figure 16; {SMALL}, figures 10, 11 and 13",
    definition="Attention maps of the last block, mean over heads and all images; entropy and centre of "
    "mass are of that mean map. Queries are cls, each register, and the patch in the middle of the grid "
    "(below and right of the centre on even sides). The cosine is between the maps of two registers on "
    "the same image, mean over all pairs and images.",
    tables={
        "Positional focus": "model | query | entropy / uniform | centre (y, x), patches"
        " | from the middle, patches | cosine between registers"
    },
    measure=_measure,
    features=("attention_NxExT", "center_T"),
    needs_any=("cls", "registers"),
    draw=_draw,
    compares="entropy of the mean map over that of a uniform map",
)
