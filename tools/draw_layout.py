"""Draws the token layout and the mask of a config, as in the pictures of the README and docs/masks.md.

python -m tools.draw_layout --config=configs/imagenette.py:registers=4,mask=fractal,k=2
--out=docs/layout.png python -m tools.draw_layout --config=configs/digits.py:k=2
--config.model.mask="shifted(offset=1)" --out=x.png
"""

from vit_registers import startup

startup.begin(__name__)

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_registers import cli
from vit_registers.analysis.report.figures import draw_mask
from vit_registers.errors import ConfigError
from vit_registers.models.masks import build_mask, owners
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import token_layout

EVERYWHERE = 14  # index of grey in the colour map, for tokens that are linked to several cells


def main() -> None:
    """The command line."""
    model = cli.config_of_flags().model
    layout = token_layout(model)
    mask_TxT = build_mask(model.mask, layout)
    if mask_TxT is None:
        raise ConfigError("model.mask='none': there is no mask to draw")
    # The mask links a cell to a cell of the second-coarsest grid, which gives its colour.
    reference = min(1, len(layout.grids) - 1)
    levels = []
    if layout.has_cls:
        levels.append(("cls", np.full((1, 1), EVERYWHERE)))
    if layout.num_registers:
        levels.append(("registers", np.full((layout.num_registers, 1), EVERYWHERE)))
    for i, grid in enumerate(layout.grids):
        colors = _colors(layout, mask_TxT, reference, i)
        levels.append(("patches" if grid == layout.patch_grid else "summaries", colors.reshape(grid)))
    figure = _draw(levels, mask_TxT, layout.level_groups)
    FigureCanvasAgg(figure)
    figure.savefig(Path(flags.FLAGS.out), dpi=130, bbox_inches="tight", facecolor="white")
    print(flags.FLAGS.out)


def _draw(
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
    draw_mask(bottom.subplots(), mask_TxT, groups)
    return figure


def _colors(layout: TokenLayout, mask_TxT: np.ndarray, reference: int, level: int) -> np.ndarray:
    """The colour number of each cell of a level: the number of its cell of the reference level."""
    coarse, fine = layout.grids[reference], layout.grids[level]
    if level < reference or not layout.summary_grids:
        return np.full(fine[0] * fine[1], EVERYWHERE)
    if level == reference:
        return np.arange(fine[0] * fine[1]) % EVERYWHERE
    linked_SxP = mask_TxT[layout.grid_slices[reference], layout.grid_slices[level]]
    has_one_owner = (linked_SxP.sum(axis=0) == 1).all()
    return (linked_SxP.argmax(axis=0) if has_one_owner else owners(coarse, fine)) % EVERYWHERE


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("out", None, "Picture to write, such as layout.png.")
    flags.mark_flags_as_required(["config", "out"])
    cli.run(main)
