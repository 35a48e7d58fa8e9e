"""Figures that several experiments share, with their colours and scales. Imports no JAX."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_registers.analysis.report.result import Found, Picture, Pictures

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#718096", "#c53030"
Draw = Callable[[Found], Pictures]  # Experiment.draw


def scale_for(values: np.ndarray) -> str:
    """The scale of an axis that shows `values`: "log", or "linear" where none of them is positive."""
    return "log" if np.any(np.asarray(values) > 0) else "linear"


def legend_name(name: str) -> str:
    """A name as a label that the legend shows: matplotlib omits labels that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def integer_ticks(axes: Axes) -> None:
    """Puts ticks of the x axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def new_grid(
    rows: int, columns: int, size: tuple[float, float], *, heights: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure of that size, in inches, with rows x columns axes without ticks; `heights` are relative."""
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure, grid


def set_titles(row: np.ndarray, titles: Sequence[str], *, fontsize: int = 9) -> None:
    """Sets the titles of the axes of a row."""
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=fontsize)


def panels(found: Found, draw: Callable[[Axes, Any], None], *, width: float = 4.2) -> Figure:
    """A panel for each model, side by side, which `draw` fills from Rows.values."""
    figure = Figure(figsize=(width * len(found) + 0.5, 3.2), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        draw(axes, one.values)
        axes.set_title("\n".join(textwrap.wrap(one.name, 30)), fontsize=9)
    return figure


def panels_picture(name: str, caption: str, draw: Callable[[Axes, Any], None], *, width: float = 4.2) -> Draw:
    """The `draw` of an experiment whose only picture is `panels`."""
    return lambda found: [Picture(name=name, caption=caption, figure=panels(found, draw, width=width))]


def lines_picture(name: str, caption: str, xlabel: str, ylabel: str, *, height: float = 3.2) -> Draw:
    """The `draw` of an experiment whose only picture has a line for each model: Rows.values are (x, y)."""

    def draw(found: Found) -> Pictures:
        figure, axes = new_axes(5.0, height)
        for one in found:
            axes.plot(*one.values, "o-", ms=3, label=legend_name(one.name))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False, fontsize=8)
        return [Picture(name=name, caption=caption, figure=figure)]

    return draw


def show_image(axes: Axes, image_HxWxC: np.ndarray) -> None:
    """Draws an image of one channel or three, uint8."""
    axes.imshow(image_HxWxC.squeeze(), cmap="gray", vmin=0, vmax=255)


def images_and_maps(
    images: Sequence[np.ndarray],
    maps_BxMxHxW: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    *,
    cmap: str = "inferno",
    limits: tuple[float | None, float | None] = (None, None),
) -> Figure:
    """A row for each image: the image, then its M maps under their titles."""
    rows, columns = len(images), 1 + len(titles)
    figure, grid = new_grid(rows, columns, (1.75 * columns + 0.3, 1.75 * rows + 0.3))
    for row, image, maps in zip(grid, images, maps_BxMxHxW, strict=True):
        show_image(row[0], image)
        for axes, map_HxW in zip(row[1:], maps, strict=True):
            axes.imshow(map_HxW, cmap=cmap, vmin=limits[0], vmax=limits[1])
    set_titles(grid[0, 1:], titles, fontsize=8)
    return figure


def maps_over_images(
    images: np.ndarray, maps_BxExHxW: np.ndarray, names: Sequence[str], labels: Sequence[str] = ()
) -> Figure:
    """A row for each map of B: the image, with its label beside it, then the map of each query over it.

    Each map has its own scale, from 0 to the maximum that is written below it.
    """
    rows, columns = len(maps_BxExHxW), 1 + len(names)
    figure, grid = new_grid(rows, columns, (1.6 * columns + 0.5, 1.8 * rows + 0.3))
    for row, image, maps_ExHxW in zip(grid, images, maps_BxExHxW, strict=True):
        height, width = image.shape[:2]
        for axes in row:
            show_image(axes, image)
        for axes, values in zip(row[1:], maps_ExHxW, strict=True):
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            axes.imshow(values, cmap="inferno", vmin=0, alpha=0.75, extent=extent)
            axes.set_xlabel(f"max {values.max():.3f}", fontsize=7, labelpad=2)
    set_titles(grid[0, 1:], names)
    for axes, label in zip(grid[:, 0], labels, strict=False):
        axes.set_ylabel(label, fontsize=9)
    return figure


def draw_mask(axes: Axes, mask_TxT: np.ndarray, groups: Mapping[str, slice]) -> None:
    """Draws the mask with its token groups: row = query, column = key, dark = may attend."""
    axes.imshow(mask_TxT, cmap=ListedColormap(["#edf2f7", BLUE]), vmin=0, vmax=1, interpolation="none")
    for where in groups.values():
        axes.axhline(where.start - 0.5, color="white", lw=1.0)
        axes.axvline(where.start - 0.5, color="white", lw=1.0)
    labels = _merge_small(groups, smallest=len(mask_TxT) // 25)
    centres = [(where.start + where.stop - 1) / 2 for _, where in labels]
    axes.set_yticks(centres, [name for name, _ in labels], fontsize=8)
    axes.set_xticks([])
    axes.set_ylabel("who attends")
    axes.set_xlabel("to whom, in the same order")


def _merge_small(groups: Mapping[str, slice], *, smallest: int) -> list[tuple[str, slice]]:
    """(label, slice) of each group; a group of fewer than `smallest` tokens shares the next one's label."""
    labels: list[tuple[str, slice]] = []
    for name, where in groups.items():
        name = f"{name} ({where.stop - where.start})"
        if labels and labels[-1][1].stop - labels[-1][1].start < smallest:
            before, first = labels.pop()
            name, where = f"{before}\n{name}", slice(first.start, where.stop)
        labels.append((name, where))
    return labels


def draw_norms(
    axes: Axes,
    norm_BxT: np.ndarray,
    groups: Mapping[str, tuple[np.ndarray, str]],
    *,
    threshold: float | None,
    threshold_label: str,
) -> None:
    """Draws a histogram of each of `groups`, (norms, colour) by label, on logarithmic axes.

    `norm_BxT` are the norms that the bins cover.
    """
    positive = norm_BxT[norm_BxT > 0]
    edges = np.geomspace(positive.min(), positive.max() * 1.0001, 80) if len(positive) else 1
    for label, (norms, color) in groups.items():
        axes.hist(norms.ravel(), bins=edges, histtype="step", color=color, label=label)
    if threshold is not None:
        axes.axvline(threshold, color=RED, lw=0.9, ls="--", label=threshold_label)
    axes.set(xscale=scale_for(norm_BxT), yscale="log", xlabel="norm", ylabel="tokens")
    axes.legend(frameon=False, fontsize=7)
