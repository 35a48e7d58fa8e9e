"""Figures that several experiments share: a panel for each model, and images beside maps. No JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_registers.analysis.report.figures import wrapped
from vit_registers.analysis.report.result import Picture, Rows


def panels(found: Sequence[Rows], draw: Callable[[Axes, Any], None], *, width: float = 4.2) -> Figure:
    """A panel for each model, side by side, which `draw` fills from Rows.values."""
    figure = Figure(figsize=(width * len(found) + 0.5, 3.2), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        draw(axes, one.values)
        axes.set_title(wrapped(one.name), fontsize=9)
    return figure


def panels_picture(
    name: str, caption: str, draw: Callable[[Axes, Any], None], *, width: float = 4.2
) -> Callable[[Sequence[Rows]], list[Picture]]:
    """The `draw` of an experiment whose only picture is `panels`."""
    return lambda found: [Picture(name=name, caption=caption, figure=panels(found, draw, width=width))]


def hide_axes(grid: np.ndarray) -> None:
    """Takes the ticks from all axes of a grid."""
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])


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
    figure = Figure(figsize=(1.75 * columns + 0.3, 1.75 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    hide_axes(grid)
    for row, image, maps in zip(grid, images, maps_BxMxHxW, strict=True):
        show_image(row[0], image)
        for axes, map_HxW in zip(row[1:], maps, strict=True):
            axes.imshow(map_HxW, cmap=cmap, vmin=limits[0], vmax=limits[1])
    for axes, title in zip(grid[0][1:], titles, strict=True):
        axes.set_title(title, fontsize=8)
    return figure
