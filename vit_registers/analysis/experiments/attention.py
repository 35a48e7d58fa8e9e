"""Where cls and registers look in the last block, on single images and on average. No JAX."""

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.decoupling import attention_shares
from vit_registers.analysis.focus import MapSums, focus, map_similarity
from vit_registers.analysis.section import Picture, Section, Table
from vit_registers.analysis.severity import summarize
from vit_registers.analysis.subject import Options, Subject

_BATCH = 256  # images at a time, so that memory is bounded


def maps(subjects: list[Subject], options: Options) -> Section:
    """The attention maps of cls and of each register, over the images."""
    pictures = []
    for subject in subjects:
        maps_NxExHxW = _maps(subject, slice(0, options.num_examples))
        pictures.append(
            Picture(
                name=f"maps-{subject.name}",
                caption=f"{subject.name}: attention of the last block, mean over heads, over the image; each "
                "map has its own scale from 0 to the maximum below it.",
                figure=_draw(subject.example_NxHxWxC, maps_NxExHxW, _queries(subject)),
            )
        )
    return Section(
        definition="Softmax weights of the last block in float32, mean over heads, of cls and each register "
        "to the patches; not divided by their sum, so that a map sums to the share of attention that "
        "patches get.",
        pictures=pictures,
    )


def _queries(subject: Subject) -> list[str]:
    return [token for token in subject.tokens() if token not in ("patches", "summaries")]


def _maps(subject: Subject, images: slice) -> np.ndarray:
    """Maps to the patches, mean over heads: BxExHxW."""
    weights = subject.store.read("attention_NxExT")[images].mean(axis=1)
    return weights[..., subject.layout.patches].reshape(*weights.shape[:2], *subject.layout.patch_grid)


def _draw(images: np.ndarray, maps_NxExHxW: np.ndarray, names: list[str]) -> Figure:
    rows, columns = len(images), 1 + len(names)
    figure = Figure(figsize=(1.6 * columns + 0.3, 1.8 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        for axes in grid[row]:
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        for axes, name, values in zip(grid[row][1:], names, maps_NxExHxW[row], strict=True):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(values, cmap="inferno", vmin=0, alpha=0.75, extent=extent)
            axes.set_xlabel(f"max {values.max():.3f}", fontsize=7, labelpad=2)
            if row == 0:
                axes.set_title(name, fontsize=9)
    return figure


def positional_focus(subjects: list[Subject], options: Options) -> Section:
    """Attention maps averaged over all images."""
    rows, pictures, gaps = [], [], []
    for subject in subjects:
        sums, similar, images = MapSums(), [], subject.store.num_read()
        for start in range(0, images, _BATCH):
            maps_BxExHxW = _maps(subject, slice(start, start + _BATCH))
            sums.add(maps_BxExHxW)
            likeness_B = map_similarity(maps_BxExHxW[:, int(subject.layout.has_cls) :])
            if likeness_B is not None:
                similar.append(likeness_B)
        if not similar:
            gaps.append(f"{subject.name}: fewer than two registers, whose maps could be compared")
        mean_ExHxW, names = sums.mean_ExHxW, _queries(subject)
        found = focus(mean_ExHxW)
        likeness = summarize(np.concatenate(similar)).mean if similar else None
        for i, name in enumerate(names):
            y, x = found.centre_patches_Ex2[i]
            entropy = None if found.entropy_share_E is None else float(found.entropy_share_E[i])
            distance = float(found.distance_patches_E[i])
            is_register = name.startswith("register")
            rows.append(
                (
                    subject.name,
                    name,
                    entropy,
                    f"{y:.2f}, {x:.2f}",
                    distance,
                    likeness if is_register else None,
                )
            )
        figure = Figure(figsize=(1.9 * len(names) + 0.6, 2.3), layout="constrained")
        for axes, name, values in zip(
            figure.subplots(1, len(names), squeeze=False)[0], names, mean_ExHxW, strict=True
        ):
            axes.imshow(values, cmap="inferno", vmin=0)
            axes.set(xticks=[], yticks=[])
            axes.set_title(name, fontsize=9)
        pictures.append(
            Picture(
                name=f"focus-{subject.name}",
                caption=f"{subject.name}: mean maps over all images.",
                figure=figure,
            )
        )
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
        "mass are of that mean map. The cosine is between the maps of two registers on the same image, mean "
        "over all pairs and images.",
        tables=[Table(title="Positional focus", columns=columns, rows=rows)],
        pictures=pictures,
        gaps=gaps,
    )


def shares(subjects: list[Subject], options: Options) -> Section:
    """How the attention of cls in the last block is divided over the token groups."""
    rows = []
    figure = Figure(figsize=(3.2 * len(subjects) + 0.5, 3.0), layout="constrained")
    for axes, subject in zip(figure.subplots(1, len(subjects), squeeze=False)[0], subjects, strict=True):
        weights_BxNxT = subject.store.read("attention_NxExT")[:, :, 0]
        groups = subject.layout.groups
        plain = attention_shares(weights_BxNxT, groups, use_renormalised=False)
        scaled = attention_shares(weights_BxNxT, groups)
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
