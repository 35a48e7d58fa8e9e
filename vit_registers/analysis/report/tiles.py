"""Grids of images and maps in one pair of axes: one for each map would take many times longer to draw."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from vit_registers.analysis.report.colors import AMOUNTS
from vit_registers.analysis.report.figures import WIDTH

CELL_PX, GAP_PX = 96, 4  # of the arrays that are drawn: the width of a cell, and the distance of two
_MAX_CELL = 1.15  # inches
_MAX_ASPECT = 2.5  # of a cell, and 1 / it
_LABEL, _BAR = 0.066, 0.5  # inches: width of a letter, height of the colour bar with its labels

Cells = Sequence[Sequence[np.ndarray | None]]  # by row and column; None: nothing is drawn there


def tiles(
    images: Cells,
    maps: Cells,
    *,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    limits: tuple[float, float] = (0.0, 1.0),
    label: str = "",
    cmap: str | Colormap = AMOUNTS,
    alpha: float = 1.0,
) -> Figure:
    """A grid with the labels of its `rows` and `columns`: uint8 images, and maps over them or beside them.

    All maps share the scale `limits`, which a colour bar with `label` explains; without `label` there is
    none. axes.images of the figure are the images, then the maps, as one array each with cells of CELL_PX.
    """
    first = next(cell for grid in (images, maps) for row in grid for cell in row if cell is not None)
    aspect = min(max(first.shape[0] / first.shape[1], 1 / _MAX_ASPECT), _MAX_ASPECT)
    size = round(CELL_PX * aspect), CELL_PX
    rows = [textwrap.fill(one, 14) for one in rows]
    left = 0.08 + _LABEL * max((len(line) for row in rows for line in row.split("\n")), default=0)
    count = max(len(row) for grid in (images, maps) for row in grid)
    cell = min((WIDTH - left) / count, _MAX_CELL)
    bar, width, height = _BAR if label else 0.0, left + cell * count, cell * aspect * len(rows)
    whole = height + bar
    figure = Figure(figsize=(width, whole))
    axes = figure.add_axes((left / width, bar / whole, 1 - left / width, height / whole))
    _show(axes, images, size, count)
    norm = Normalize(*limits)
    if any(one is not None for row in maps for one in row):
        canvas = np.ma.masked_invalid(_canvas(maps, size, count))
        axes.imshow(canvas, cmap=cmap, norm=norm, alpha=alpha, interpolation="nearest")
    _set_labels(axes, rows, columns, size, cell)
    axes.set_aspect("auto")
    if label:
        place = (left / width, 0.62 * bar / whole, 1 - left / width, 0.12 / whole)
        shown = figure.colorbar(
            ScalarMappable(norm, cmap), cax=figure.add_axes(place), orientation="horizontal"
        )
        shown.ax.tick_params(labelsize=8)
        shown.set_label(label, fontsize=8)
    return figure


def _show(axes: Axes, images: Cells, size: tuple[int, int], count: int) -> None:
    """Draws the images on white."""
    colored = [[None if one is None else _rgb(one) for one in row] for row in images]
    canvas = _canvas(colored, size, count)
    canvas = np.full((*canvas.shape[:2], 3), np.nan) if canvas.ndim == 2 else canvas
    axes.imshow(np.nan_to_num(canvas, nan=255.0).astype(np.uint8), interpolation="nearest")


def _rgb(image_HxWxC: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image_HxWxC, (*image_HxWxC.shape[:2], 3)).astype(np.float32)


def _canvas(cells: Cells, size: tuple[int, int], count: int) -> np.ndarray:
    """All cells in one array, NaN between them, each resized to `size` by the nearest value."""
    (height, width), present = size, [one for row in cells for one in row if one is not None]
    channels = present[0].shape[2:] if present else ()
    shape = (len(cells) * (height + GAP_PX) - GAP_PX, count * (width + GAP_PX) - GAP_PX, *channels)
    canvas = np.full(shape, np.nan, np.float32)
    for y, row in enumerate(cells):
        for x, one in enumerate(row):
            if one is not None:
                down = (np.arange(height) + 0.5) * one.shape[0] // height
                right = (np.arange(width) + 0.5) * one.shape[1] // width
                top, left = y * (height + GAP_PX), x * (width + GAP_PX)
                picked = one[down.astype(int)[:, None], right.astype(int)[None]]
                canvas[top : top + height, left : left + width] = picked
    return canvas


def _set_labels(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], size: tuple[int, int], cell: float
) -> None:
    (height, width), fits = size, int(cell / _LABEL)
    axes.set_yticks([y * (height + GAP_PX) + height / 2 for y in range(len(rows))], rows, fontsize=8)
    places = [x * (width + GAP_PX) + width / 2 for x in range(len(columns))]
    is_wide = any(len(word) > fits for column in columns for word in column.split())
    texts = columns if is_wide else [textwrap.fill(column, max(fits, 1)) for column in columns]
    axes.set_xticks(places, texts, fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, labelrotation=0, pad=2)
    if is_wide:
        for text in axes.get_xticklabels():
            text.set(rotation=35, ha="left", va="bottom", rotation_mode="anchor")
    axes.spines[:].set_visible(False)
