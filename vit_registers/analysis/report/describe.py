"""What a figure shows, in words, for alternative texts. Imports no JAX."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

_MOST = 8  # lines that are described


def described(figure: Figure) -> list[str]:
    """A sentence for each line and each group of bars that has a label, with its numbers."""
    return [sentence for axes in figure.axes for sentence in _of_axes(axes)][:_MOST]


def _of_axes(axes: Axes) -> Iterator[str]:
    for line in axes.get_lines():
        label = _one_line(line.get_label())
        x, y = (np.asarray(values, float) for values in line.get_data())
        if label and len(y) > 1 and np.isfinite(y).all():
            yield f"{label}: {y[0]:.3g} at {x[0]:.3g}, {y[-1]:.3g} at {x[-1]:.3g}."
        elif label and len(y) == 1:
            yield f"{label}: {y[0]:.3g} at {x[0]:.3g}."
    groups = [text.get_text() for text in axes.get_xticklabels()]
    for bars in axes.containers:
        label = _one_line(bars.get_label())
        if isinstance(bars, BarContainer) and label and groups:
            middles = [bar.get_x() + bar.get_width() / 2 for bar in bars.patches]
            named = zip(middles, bars.patches, strict=True)
            values = (
                f"{groups[round(x)]} {bar.get_height():.3g}" for x, bar in named if round(x) < len(groups)
            )
            yield f"{label}: {', '.join(values)}."


def _one_line(label: object) -> str:
    """The label as a line; empty for labels of matplotlib's own, which begin with an underscore."""
    text = str(label)
    return "" if text.startswith("_") else " ".join(text.split())
