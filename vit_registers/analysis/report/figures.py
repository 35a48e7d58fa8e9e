"""Colours, scales and figures of curves, masks, owners and norms. Imports no JAX."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#dd6b20", "#2f855a", "#718096", "#c53030"


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a picture."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")


def scale_for(values: np.ndarray) -> str:
    """The scale of an axis that shows `values`: "log", or "linear" where none of them is positive."""
    return "log" if np.any(np.asarray(values) > 0) else "linear"


def legend_name(name: str) -> str:
    """A name as a label that the legend shows: it leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def wrapped(name: str) -> str:
    """A name in lines that fit above a small picture."""
    return "\n".join(textwrap.wrap(name, 30))


def integer_ticks(axes: Axes) -> None:
    """Puts ticks of the x axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def metric_series(records: Sequence[Mapping[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each metric of the records of a metrics.jsonl as (steps, values); null is NaN."""
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                series.setdefault(name, []).append((int(record["step"]), value))
    arrays = {name: np.array(points, float) for name, points in series.items()}
    return {name: (points_Nx2[:, 0], points_Nx2[:, 1]) for name, points_Nx2 in arrays.items()}


def draw_curves(metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Loss and top-1 against steps: of single training batches in grey, of evaluations as marked lines."""
    figure = Figure(figsize=(10, 3.6))
    for place, (kind, label) in enumerate([("loss", "loss"), ("top1", "top-1 accuracy")], start=1):
        axes = figure.add_subplot(1, 2, place)
        for name, (steps, values) in metrics.items():
            group, _, key = name.partition("/")
            if key != kind:
                continue
            if group == "train":
                axes.plot(steps, values, color=GREY, lw=0.8, alpha=0.7, label="train, single mixed batches")
            else:
                color = ORANGE if group.endswith("_ema") else BLUE
                axes.plot(
                    steps, values, "o-", color=color, ms=4, label=f"{group}: {values[-1]:.4g} at the end"
                )
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    return figure


def draw_mask(mask_TxT: np.ndarray, groups: Mapping[str, slice], *, title: str) -> Figure:
    """The mask with its token groups: row = who attends, column = to whom, dark = may attend."""
    figure = Figure(figsize=(6.4, 6.4))
    axes = figure.add_subplot()
    _draw_mask(axes, mask_TxT, groups)
    axes.set_title(f"{title}: {mask_TxT.mean():.1%} of the pairs may attend", fontsize=9)
    return figure


def _draw_mask(axes: Axes, mask_TxT: np.ndarray, groups: Mapping[str, slice]) -> None:
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
    """(label, where) of each group; neighbours too small for a label of their own share one."""
    labels: list[tuple[str, slice]] = []
    for name, where in groups.items():
        name = f"{name} ({where.stop - where.start})"
        if labels and labels[-1][1].stop - labels[-1][1].start < smallest:
            before, first = labels.pop()
            name, where = f"{before}\n{name}", slice(first.start, where.stop)
        labels.append((name, where))
    return labels


def draw_layout(
    levels: Sequence[tuple[str, np.ndarray]], mask_TxT: np.ndarray, groups: Mapping[str, slice]
) -> Figure:
    """The token sequence group by group, cells that may attend to each other in one colour, and the mask.

    `levels` holds a name and a 2-D array of colour numbers per group, in the order of the sequence.
    """
    figure = Figure(figsize=(7.6, 8.0), layout="constrained")
    top, bottom = np.ravel(figure.subfigures(2, 1, height_ratios=(1, 3), squeeze=False))
    for axes, (name, values) in zip(top.subplots(1, len(levels)), levels, strict=True):
        rows, columns = values.shape
        axes.imshow(values, cmap="tab20", vmin=0, vmax=19)
        axes.set_xticks(np.arange(-0.5, columns), minor=True)
        axes.set_yticks(np.arange(-0.5, rows), minor=True)
        axes.grid(which="minor", color="white", lw=1.5)
        axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"{name}\n{rows} x {columns}", fontsize=9)
    _draw_mask(bottom.subplots(), mask_TxT, groups)
    return figure


def draw_owners(pairs: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """For each pair of levels, two maps of the fine grid: its cells' owners by the mask, and by the image.

    `pairs` holds a title and two maps of cell numbers of the coarse grid. Numbers below 0, for no one owner,
    are grey; numbers that follow each other have unlike colours.
    """
    figure = Figure(figsize=(1.7 * len(pairs) + 0.4, 4.0), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False)
    for (top, below), (title, linked_HxW, geometric_HxW) in zip(grid.T, pairs, strict=True):
        for axes, owner_HxW in ((top, linked_HxW), (below, geometric_HxW)):
            axes.imshow(_colors(owner_HxW), interpolation="none")
            axes.set(xticks=[], yticks=[])
        top.set_title(title, fontsize=8)
    grid[0, 0].set_ylabel("linked", fontsize=9)
    grid[1, 0].set_ylabel("lies in", fontsize=9)
    return figure


def _colors(owner_HxW: np.ndarray) -> np.ndarray:
    """Hues a golden section apart, in three steps of brightness: HxWx3."""
    hue_HxW = owner_HxW * 0.618034 % 1
    value_HxW = np.array([0.9, 0.65, 0.45])[owner_HxW % 3]
    color_HxWx3 = hsv_to_rgb(np.stack([hue_HxW, np.full(owner_HxW.shape, 0.7), value_HxW], axis=-1))
    return np.where(owner_HxW[..., None] < 0, to_rgb("#edf2f7"), color_HxWx3)


def draw_norms(
    axes: Axes,
    norm_BxT: np.ndarray,
    groups: Mapping[str, tuple[np.ndarray, str]],
    *,
    threshold: float | None,
    threshold_label: str,
) -> None:
    """Histograms of norms on logarithmic axes, of each of `groups`: norms and their colour, by label.

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
