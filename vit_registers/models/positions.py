"""Positions of tokens over grids: fixed tables, learned tables and attention biases."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vit_registers.errors import ConfigError
from vit_registers.models.tokens import Grid, TokenLayout


def sincos2d(grid: Grid, width: int) -> np.ndarray:
    """The fixed table [rows * columns, width], float32: sin x, cos x, sin y, cos y of cell indices.

    x is the column and y the row; frequencies 10000 ** -(i / (width/4 - 1)), i < width/4, as in
    MoCo v3 and big_vision. Raises ConfigError unless width is a multiple of 4, at least 8.
    """
    if width % 4 or width < 8:
        raise ConfigError(
            f"positions='sincos2d' with model.width={width}: the width must be a multiple of 4, at least 8"
        )
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    y, x = np.mgrid[: grid[0], : grid[1]].reshape(2, -1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slopes of ALiBi (arXiv:2108.12409), [heads] float64: 2 ** (-8 i / n) for n heads, i = 1..n.

    If n is not a power of two: the slopes of the next lower power of two, then every other slope of twice it.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4.0 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: num_heads - power]])


def alibi2d(layout: TokenLayout, num_heads: int) -> np.ndarray:
    """The bias bias_NxTxT, float32: -slope * euclidean distance in cells, within each grid.

    Block-diagonal, with one block for each summary level and one for the patches. Between levels, and for cls
    and registers, the bias is 0 (arXiv:2601.15506).
    """
    distance_TxT = np.zeros((layout.num_tokens, layout.num_tokens))
    for (rows, columns), where in zip(layout.grids, layout.grid_slices, strict=True):
        cells = np.mgrid[:rows, :columns].reshape(2, -1).T
        distance_TxT[where, where] = np.linalg.norm(cells[:, None] - cells[None], axis=-1)
    return (-alibi_slopes(num_heads)[:, None, None] * distance_TxT).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PositionRule:
    """The rule of one value of `model.positions`. At most one field is set."""

    table: Callable[[Grid, int], np.ndarray] | None = None  # (grid, width) -> fixed table
    is_learned: bool = False
    bias: Callable[[TokenLayout, int], np.ndarray] | None = None  # (layout, heads) -> bias_NxTxT


POSITIONS: dict[str, PositionRule] = {
    "sincos2d": PositionRule(table=sincos2d),
    "learned": PositionRule(is_learned=True),
    "alibi2d": PositionRule(bias=alibi2d),
    "none": PositionRule(),
}
