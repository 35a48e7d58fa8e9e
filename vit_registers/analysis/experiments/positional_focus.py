"""Where cls and the registers look in the last block, on average over images. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.attention_grids import (
    mean_maps,
    queries,
)
from vit_registers.analysis.measures.focus import MapSums, focus, map_similarity
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

MIDDLE = "middle patch"


def positional_focus(subjects: list[Subject], options: Options) -> Result:
    """Attention maps averaged over all images: of cls, of each register, and of the middle patch."""
    rows, pictures, gaps = [], [], []
    for subject in subjects:
        mean_ExHxW, likeness = _mean_over_images(subject)
        if likeness is None:
            gaps.append(f"{subject.name}: fewer than two registers, whose maps could be compared")
        names = [*queries(subject), MIDDLE]
        found = focus(mean_ExHxW)
        for i, name in enumerate(names):
            y, x = found.centre_patches_Ex2[i]
            entropy = None if found.entropy_share_E is None else float(found.entropy_share_E[i])
            of_registers = likeness if name.startswith("register") else None
            distance = float(found.distance_patches_E[i])
            rows.append((subject.name, name, entropy, f"{y:.2f}, {x:.2f}", distance, of_registers))
        figure = Figure(figsize=(1.7 * len(names) + 0.6, 2.1), layout="constrained")
        for axes, name, values in zip(
            figure.subplots(1, len(names), squeeze=False)[0], names, mean_ExHxW, strict=True
        ):
            axes.imshow(values, cmap="inferno", vmin=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(name, fontsize=9)
        caption = f"{subject.name}: mean maps over all images, each on a scale of its own."
        pictures.append(Picture(name=f"focus-{subject.name}", caption=caption, figure=figure))
    columns = (
        "model",
        "query",
        "entropy / uniform",
        "centre (y, x), patches",
        "from the middle, patches",
        "cosine between registers",
    )
    return Result(
        definition="Attention maps of the last block, mean over heads and all images; entropy and centre of "
        "mass are of that mean map. Queries are cls, each register, and the patch in the middle of the grid "
        "(below and right of the centre on even sides). The cosine is between the maps of two registers on "
        "the same image, mean over all pairs and images.",
        tables=[Table(title="Positional focus", columns=columns, rows=rows)],
        pictures=pictures,
        gaps=gaps,
    )


def _mean_over_images(subject: Subject) -> tuple[np.ndarray, float | None]:
    """The mean maps of all queries and the middle patch; how alike registers' maps are on an image."""
    sums, similar, layout = MapSums(), [], subject.layout
    for images in in_parts(subject.store.num_read()):
        maps_BxExHxW = mean_maps(subject, images)
        likeness_B = map_similarity(maps_BxExHxW[:, int(layout.has_cls) :])
        if likeness_B is not None:
            similar.append(likeness_B)
        middle = subject.store.read("center_T")[images, layout.patches].reshape(-1, 1, *layout.patch_grid)
        sums.add(np.concatenate([maps_BxExHxW, middle], axis=1))
    return sums.mean_ExHxW, summarize(np.concatenate(similar)).mean if similar else None
