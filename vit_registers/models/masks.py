"""Who may attend to whom: TokenLayout -> static boolean mask_TxT, True = may attend. numpy only.

cls and registers attend to all and are attended by all, in every mask.
"""

from collections.abc import Callable

import numpy as np

from vit_registers.config import lookup
from vit_registers.errors import ConfigError
from vit_registers.models.tokens import Grid, TokenLayout


def owners(coarse: Grid, fine: Grid) -> np.ndarray:
    """For each cell of grid `fine`, row-major, the flat index of the cell of grid `coarse` that it lies in.

    Fine cell (r, c) lies in coarse cell (floor(r * s / t), floor(c * s / t)), with s and t the coarse
    and fine sides, also where t is no multiple of s: 14 on 3 gives blocks of 5, 5 and 4.
    """
    rows = np.arange(fine[0]) * coarse[0] // fine[0]
    columns = np.arange(fine[1]) * coarse[1] // fine[1]
    return (rows[:, None] * coarse[1] + columns).ravel()


def _require_summaries(layout: TokenLayout, name: str) -> None:
    if not layout.summary_grids:
        raise ConfigError(f"model.mask='{name}' needs summary tokens: set model.summary_factor=k, k >= 2")


def _frame(layout: TokenLayout) -> np.ndarray:
    """cls and registers with all; every grid with itself; nothing else."""
    mask_TxT = np.zeros((layout.num_tokens, layout.num_tokens), bool)
    mask_TxT[: layout.registers.stop] = True
    mask_TxT[:, : layout.registers.stop] = True
    for where in layout.grid_slices:
        mask_TxT[where, where] = True
    return mask_TxT


def fractal(layout: TokenLayout) -> np.ndarray:
    """The fractal mask: a summary token and every finer cell inside it, at every finer level, see each other.

    Each level sees itself in full, patches included; nothing else across levels. The geometry that
    arXiv:2601.15506 describes, for any grids; see `fractal_released` for what its code does.
    """
    _require_summaries(layout, "fractal")
    mask_TxT = _frame(layout)
    levels = list(zip(layout.grids, layout.grid_slices, strict=True))
    for i, (coarse, at) in enumerate(levels):
        for fine, below in levels[i + 1 :]:
            is_inside = owners(coarse, fine)[:, None] == np.arange(coarse[0] * coarse[1])
            mask_TxT[below, at] = is_inside
            mask_TxT[at, below] = is_inside.T
    return mask_TxT


def fractal_local(layout: TokenLayout) -> np.ndarray:
    """The fractal mask with patches confined too: a patch sees the patches of its own finest summary cell.

    The ablation that arXiv:2601.15506 reports to destroy performance.
    """
    _require_summaries(layout, "fractal_local")
    mask_TxT = fractal(layout)
    owner_P = owners(layout.summary_grids[-1], layout.patch_grid)
    mask_TxT[layout.patches, layout.patches] = owner_P[:, None] == owner_P
    return mask_TxT


def fractal_released(layout: TokenLayout) -> np.ndarray:
    """The mask that the public code of arXiv:2601.15506 produces, bit for bit, defects included.

    That code takes the side of the second level for k, and assumes that each side is k times the one
    before. Where that is so (16 x 16 with k = 2 or 4) the mask is the geometric one; where it is not
    (14 x 14) the blocks are runs of the flat sequence that do not correspond to blocks of the image.
    """
    _require_summaries(layout, "fractal_released")
    if any(rows != columns for rows, columns in layout.grids):
        raise ConfigError(
            f"model.mask='fractal_released' is defined for square grids only, not {layout.patch_grid}: "
            "use mask='fractal'"
        )
    mask_TxT = _frame(layout)
    sides = [rows for rows, _ in layout.grids]
    offsets = [where.start for where in layout.grid_slices]
    factor = sides[1]
    for i, side in enumerate(sides[:-1]):
        start = offsets[i]
        for j in range(1, len(sides) - i):
            start += (side * factor ** (j - 1)) ** 2  # where the code believes that level i + j begins
            block = factor**j
            stride = side * block
            for row in range(side):
                for column in range(side):
                    token = offsets[i] + row * side + column
                    for inner in range(row * block, (row + 1) * block):
                        first = start + inner * stride + column * block
                        mask_TxT[token, first : first + block] = True
                        mask_TxT[first : first + block, token] = True
    return mask_TxT


MASKS: dict[str, Callable[[TokenLayout], np.ndarray | None]] = {
    "none": lambda layout: None,
    "fractal": fractal,
    "fractal_released": fractal_released,
    "fractal_local": fractal_local,
}


def build_mask(name: str, layout: TokenLayout) -> np.ndarray | None:
    """The mask_TxT of that name, or None for full attention. Raises ConfigError for an unknown name."""
    mask_TxT = lookup(MASKS, name, "model.mask")(layout)
    assert mask_TxT is None or mask_TxT.any(axis=1).all(), "a token that sees nothing"
    return mask_TxT
