"""Attention maps of the last block, drawn over images: mean over heads, or head by head. No JAX."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from vit_registers.analysis.subject import Subject


def queries(subject: Subject) -> list[str]:
    """The names of the E queries of attention_NxExT: cls and each register."""
    return [token for token in subject.tokens() if token not in ("patches", "summaries")]


def mean_maps(subject: Subject, images: slice | np.ndarray) -> np.ndarray:
    """Attention of cls and each register to the patches, mean over heads: BxExHxW."""
    return head_maps(subject, images).mean(axis=1)


def head_maps(subject: Subject, images: slice | np.ndarray) -> np.ndarray:
    """The same, head by head: BxNxExHxW."""
    weights = subject.store.read("attention_NxExT")[images][..., subject.layout.patches]
    return weights.reshape(*weights.shape[:-1], *subject.layout.patch_grid)


def draw_maps(
    images: np.ndarray, maps_BxExHxW: np.ndarray, names: Sequence[str], labels: Sequence[str] = ()
) -> Figure:
    """A row for each map of B: the image, with its label beside it, then what each query attends to, over it.

    Each map has its own scale, from 0 to the maximum that is written below it.
    """
    rows, columns = len(maps_BxExHxW), 1 + len(names)
    figure = Figure(figsize=(1.6 * columns + 0.5, 1.8 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, (image, maps_ExHxW) in enumerate(zip(images, maps_BxExHxW, strict=True)):
        height, width = image.shape[:2]
        for axes in grid[row]:
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
        for axes, name, values in zip(grid[row][1:], names, maps_ExHxW, strict=True):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(values, cmap="inferno", vmin=0, alpha=0.75, extent=extent)
            axes.set_xlabel(f"max {values.max():.3f}", fontsize=7, labelpad=2)
            if row == 0:
                axes.set_title(name, fontsize=9)
    for axes, label in zip(grid[:, 0], labels, strict=False):
        axes.set_ylabel(label, fontsize=9)
    return figure


def draw_heads(image: np.ndarray, maps_NxExHxW: np.ndarray, names: Sequence[str]) -> Figure:
    """The image, then a row for each query with its map in each head, on scales as in `draw_maps`."""
    heads, rows = len(maps_NxExHxW), len(names)
    figure = Figure(figsize=(1.05 * (heads + 1) + 0.4, 1.3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, heads + 1, squeeze=False)
    for axes in grid[:, 0]:
        axes.set_axis_off()
    grid[0, 0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    for row, name in enumerate(names):
        for head, axes in enumerate(grid[row, 1:]):
            values = maps_NxExHxW[head, row]
            axes.imshow(values, cmap="inferno", vmin=0)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"max {values.max():.3f}", fontsize=6, labelpad=1)
            if row == 0:
                axes.set_title(f"head {head}", fontsize=8)
        grid[row, 1].set_ylabel(name, fontsize=8)
    return figure
