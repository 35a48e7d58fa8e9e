"""Draws the token layout and the mask of a config: the picture at the top of the README.

python -m tools.draw_layout --config=configs/vit_s16_i1k.py:registers=4,mask=fractal,k=2 --out=docs/layout.png
"""

from vit_registers import startup

startup.begin(__name__)

from pathlib import Path

import numpy as np
from absl import flags

from vit_registers import cli
from vit_registers.analysis.report import figures
from vit_registers.errors import ConfigError
from vit_registers.models.masks import build_mask, owners
from vit_registers.models.vit import token_layout

EVERYWHERE = 14  # the grey of the colour map: sees all, or all of its block's parents


def main() -> None:
    """The command line."""
    model = cli.config_of_flags().model
    layout = token_layout(model)
    mask_TxT = build_mask(model.mask, layout)
    if mask_TxT is None:
        raise ConfigError("model.mask='none': there is no mask to draw")
    # A cell has the colour of the cell of the second-coarsest grid that it lies in, so that blocks show.
    reference = layout.grids[min(1, len(layout.grids) - 2)]
    levels = []
    if layout.has_cls:
        levels.append(("cls", np.full((1, 1), EVERYWHERE)))
    if layout.num_registers:
        levels.append(("registers", np.full((layout.num_registers, 1), EVERYWHERE)))
    for grid in layout.grids:
        is_coarser = grid[0] < reference[0]
        colors = (
            np.full(grid[0] * grid[1], EVERYWHERE) if is_coarser else owners(reference, grid) % EVERYWHERE
        )
        levels.append(("patches" if grid == layout.patch_grid else "summaries", colors.reshape(grid)))
    figures.save(figures.draw_layout(levels, mask_TxT, layout.level_groups), Path(flags.FLAGS.out))
    print(flags.FLAGS.out)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("out", None, "The picture to write.")
    flags.mark_flags_as_required(["config", "out"])
    cli.run(main)
