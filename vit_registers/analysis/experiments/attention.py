"""Where cls and registers look in the last block, on single images and on average. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.attention_grids import (
    draw_heads,
    draw_maps,
    head_maps,
    mean_maps,
    queries,
)
from vit_registers.analysis.measures.decoupling import attention_shares
from vit_registers.analysis.measures.focus import MapSums, focus, map_similarity
from vit_registers.analysis.measures.severity import summarize
from vit_registers.analysis.report.section import Picture, Section, Table
from vit_registers.analysis.subject import Options, Subject, in_parts

MIDDLE = "middle patch"


def maps(subjects: list[Subject], options: Options) -> Section:
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
    return Section(
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


def positional_focus(subjects: list[Subject], options: Options) -> Section:
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
    return Section(
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


def shares(subjects: list[Subject], options: Options) -> Section:
    """How the attention of cls in the last block is divided over the token groups."""
    rows = []
    figure = Figure(figsize=(3.2 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        plain, scaled = _shares(subject, use_renormalised=False), _shares(subject, use_renormalised=True)
        for name, share_B in plain.items():
            of_rest = summarize(scaled[name]) if name in scaled else None
            own = summarize(share_B)
            rows.append(
                (
                    subject.name,
                    name,
                    own.mean,
                    own.std,
                    of_rest.mean if of_rest else None,
                    of_rest.std if of_rest else None,
                )
            )
        axes.violinplot(list(plain.values()), showmedians=True)
        axes.set_xticks(range(1, len(plain) + 1), list(plain), fontsize=8)
        axes.set(ylim=(0, 1), ylabel="share of attention", title=subject.name)
    columns = ("model", "to", "share", "std", "share without cls", "std without cls")
    return Section(
        definition="Attention of cls in the last block, mean over heads, summed over each group; standard "
        "deviations are over images. The last two columns leave cls itself out and divide by the rest: the "
        "text of the paper says that patches and registers sum to 1.",
        tables=[Table(title="Attention of cls", columns=columns, rows=rows)],
        pictures=[Picture(name="shares", caption="Shares over images.", figure=figure)],
    )


def _shares(subject: Subject, *, use_renormalised: bool) -> dict[str, np.ndarray]:
    """attention_shares of all images."""
    weights_BxNxExT = subject.store.read("attention_NxExT")
    found = [
        attention_shares(
            weights_BxNxExT[images, :, 0], subject.layout.groups, use_renormalised=use_renormalised
        )
        for images in in_parts(len(weights_BxNxExT))
    ]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
