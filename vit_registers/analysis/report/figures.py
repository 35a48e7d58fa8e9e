"""Figures that several experiments share, with their scales. Imports no JAX.

A figure is at most WIDTH inches wide, so that its texts are legible on a phone at its natural size.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from vit_registers.analysis.report.colors import BLUE, PALE, RED, color_of
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows

STYLES = ("-", "--", ":", "-.")  # of what is drawn of one model
WIDTH = 4.1
Draw = Callable[[Found], Pictures]  # Experiment.draw
BAND_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)  # of distributions
BANDS = (  # for captions
    "the median (line) and bands of the middle 50, 90 and 98 % and of all patches; the faintest ends at the "
    "largest norm"
)
DrawModel = Callable[[Axes, Any, str, str], None]  # axes, Rows.values, colour and name of the model
_NAME_LENGTH = 40  # letters in a line of the legend


def plain_log(axis: XAxis | YAxis) -> None:
    """Makes the axis logarithmic, with ticks at plain numbers such as 20 and 50.

    Call it after drawing. Values that are not positive are left out; without positive values the axis stays
    linear.
    """
    low, high = axis.get_data_interval()
    if not np.isfinite([low, high]).all() or high <= 0:
        return
    axis.axes.set(xscale="log") if isinstance(axis, XAxis) else axis.axes.set(yscale="log")
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(MaxNLocator(4) if decades < 0.8 else LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_name(name: str) -> str:
    """A name as a label that the legend shows: matplotlib omits labels that begin with an underscore."""
    lines = "\n".join(textwrap.wrap(name, _NAME_LENGTH)) or name
    return f" {lines}" if name.startswith("_") else lines


def legend_above(axes: Axes, *, ncols: int = 2) -> None:
    """A legend above the axes, where it hides no curve; none without labels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        ncols = 1 if max(map(len, labels)) > _NAME_LENGTH / 2 else ncols
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=ncols,
            frameon=False,
            fontsize=8,
            borderaxespad=0.2,
        )


def integer_ticks(axes: Axes) -> None:
    """Puts ticks of the x axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def new_axes(height: float = 2.5, *, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of that size, in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.6 / width, 0.45 / height, 1 - 0.7 / width, 1 - 0.5 / height))
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


class Band(NamedTuple):
    """Distributions along an axis, for a panel of `band_panels`."""

    title: str
    at_X: Sequence[float]
    quantiles_XxQ: np.ndarray  # by BAND_QUANTILES
    color: str


def band_panels(bands: Sequence[Band], *, xlabel: str, limits: tuple[float, float] | None = None) -> Figure:
    """A panel for each of `bands`, of norms on one logarithmic scale, from `limits` if they are positive.

    The median is a line; BANDS says what the bands around it are.
    """
    columns = 3 if len(bands) == 3 else min(len(bands), 2)
    rows = -(-len(bands) // columns)
    size = WIDTH, rows * 1.7 + 0.3
    figure = Figure(figsize=size)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    edges = {"left": 0.6 / size[0], "right": 1 - 0.1 / size[0], "bottom": 0.45 / size[1]}
    figure.subplots_adjust(**edges, top=1 - 0.25 / size[1], wspace=0.08, hspace=0.35)
    for axes, band in zip(grid.flat, bands, strict=False):
        _draw_band(axes, band)
        axes.xaxis.set_major_locator(MaxNLocator(6 - columns, integer=True))
    if limits is not None and limits[0] > 0:
        grid[0, 0].set_ylim(limits[0] / 1.1, limits[1] * 1.1)
    plain_log(grid[0, 0].yaxis)
    for axes in grid.flat[len(bands) :]:
        axes.remove()
    for column in range(columns):
        lowest = grid[(len(bands) - 1 - column) // columns, column]
        lowest.set_xlabel(xlabel, fontsize=9)
        lowest.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("norm", fontsize=9)
    return figure


def _draw_band(axes: Axes, band: Band) -> None:
    count = band.quantiles_XxQ.shape[1]
    axes.plot(band.at_X, band.quantiles_XxQ[:, count // 2], color=band.color, lw=1.2)
    for i in range(count // 2):
        low_X, high_X = band.quantiles_XxQ[:, i], band.quantiles_XxQ[:, -1 - i]
        axes.fill_between(band.at_X, low_X, high_X, color=band.color, alpha=0.18, lw=0)
    axes.set_title(legend_name(band.title), fontsize=8, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def new_grid(
    rows: int, columns: int, size: tuple[float, float], *, heights: Sequence[float] | None = None
) -> tuple[Figure, np.ndarray]:
    """A figure of that size, in inches, with rows x columns axes without ticks; `heights` are relative."""
    figure = Figure(figsize=size)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.92, wspace=0.06, hspace=0.08)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure, grid


def set_titles(row: np.ndarray, titles: Sequence[str], *, fontsize: int = 9) -> None:
    """Sets the titles of the axes of a row."""
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=fontsize)


def overlay(found: Found, draw: DrawModel, *, height: float = 2.5) -> Figure:
    """All models in one pair of axes, which `draw` fills, with a legend above."""
    figure, axes = new_axes(height)
    for one in found:
        draw(axes, one.values, color_of(one.place), one.name)
    legend_above(axes)
    return figure


def overlay_picture(name: str, caption: str, draw: DrawModel) -> Draw:
    """The `draw` of an experiment whose only picture is `overlay`."""
    return lambda found: [Picture(name=name, caption=caption, figure=overlay(found, draw))]


def pictures_by_model(name: str, caption: str, draw: Callable[[Axes, Any], None]) -> Draw:
    """The `draw` of an experiment that has one picture of each model, drawn from Rows.values."""

    def pictures(found: Found) -> Pictures:
        for one in found:
            figure, axes = new_axes()
            draw(axes, one.values)
            legend_above(axes)
            yield Picture(name=f"{name}-{one.name}", caption=f"{one.name}: {caption}", figure=figure)

    return pictures


def lines_picture(name: str, caption: str, xlabel: str, ylabel: str) -> Draw:
    """The `draw` of an experiment whose only picture has a line for each model: Rows.values are (x, y)."""

    def draw(axes: Axes, values: Any, color: str, model: str) -> None:
        axes.plot(*values, "o-", ms=3, color=color, label=legend_name(model))
        axes.set(xlabel=xlabel, ylabel=ylabel)

    return overlay_picture(name, caption, draw)


def grouped_bars(
    axes: Axes,
    found: Found,
    values_of: Callable[[Rows], Mapping[str, float | None]],
    errors_of: Callable[[Rows], Mapping[str, float]] | None = None,
    dots_of: Callable[[Rows], Mapping[str, float | None]] | None = None,
) -> None:
    """Bars of each group side by side, one for each model: `values_of` it by group, `dots_of` it on them."""
    groups = list(dict.fromkeys(group for one in found for group in values_of(one)))
    slot = 0.8 / max(len(found), 1)
    for place, one in enumerate(found):
        values = values_of(one)
        at = [i + slot * (place - (len(found) - 1) / 2) for i, group in enumerate(groups) if group in values]
        given = [values[group] for group in groups if group in values]
        heights = np.array([np.nan if value is None else value for value in given])
        errors = errors_of(one) if errors_of is not None else None
        error = [errors[group] for group in groups if group in values] if errors is not None else None
        axes.bar(
            at,
            heights,
            slot * 0.92,
            yerr=error,
            capsize=2,
            color=color_of(one.place),
            label=legend_name(one.name),
        )
        if dots_of is not None:
            dots = [dots_of(one)[group] for group in groups if group in values]
            axes.plot(at, [np.nan if dot is None else dot for dot in dots], "o", ms=3, color="black")
    axes.set_xticks(range(len(groups)), groups, fontsize=8)


def grouped_violins(
    axes: Axes, found: Found, groups: Sequence[str], values_of: Callable[[Rows], Mapping[str, np.ndarray]]
) -> None:
    """The distributions of each of `groups` side by side, one for each model that has it."""
    slot = 0.8 / len(found)
    for place, one in enumerate(found):
        values = values_of(one)
        at = [i + slot * (place - (len(found) - 1) / 2) for i, name in enumerate(groups) if name in values]
        parts = axes.violinplot(
            [values[name] for name in groups if name in values], at, widths=0.9 * slot, showmedians=True
        )
        bodies: Any = parts["bodies"]
        for part in [*bodies, *(parts[name] for name in ("cbars", "cmins", "cmaxes", "cmedians"))]:
            part.set_color(color_of(one.place))
        axes.plot([], [], color=color_of(one.place), lw=4, label=legend_name(one.name))
    axes.set_xticks(range(len(groups)), groups, fontsize=8)


def draw_mask(axes: Axes, mask_TxT: np.ndarray, groups: Mapping[str, slice]) -> None:
    """Draws the mask with its token groups: row = query, column = key, dark = may attend."""
    axes.imshow(mask_TxT, cmap=ListedColormap([PALE, BLUE]), vmin=0, vmax=1, interpolation="none")
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


def norm_edges(norm_BxT: np.ndarray, count: int = 60) -> np.ndarray:
    """Edges of bins that cover the positive norms, at equal ratios."""
    positive = norm_BxT[norm_BxT > 0]
    return np.geomspace(positive.min(), positive.max() * 1.0001, count) if len(positive) else np.array([0, 1])


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
    edges = norm_edges(norm_BxT)
    for label, (norms, color) in groups.items():
        axes.hist(norms.ravel(), bins=edges.tolist(), histtype="step", color=color, label=label)
    if threshold is not None:
        axes.axvline(threshold, color=RED, lw=0.9, ls="--", label=threshold_label)
    axes.set(xlabel="norm", ylabel="tokens")
    plain_log(axes.xaxis)
    plain_log(axes.yaxis)
