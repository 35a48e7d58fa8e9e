"""Positions of tokens over grids: fixed tables, learned tables, attention biases and rotations."""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_registers.config.strings import Call, parse_calls
from vit_registers.errors import ConfigError
from vit_registers.models.rotary import IN_TRAINING, Rotary, rope2d
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


def sincos1d(grid: Grid, width: int) -> np.ndarray:
    """The fixed table [columns, width], float32: sin and cos of the index, for sequences, of one row.

    Frequencies 10000 ** -(2 i / width), i < width/2, as in arXiv:1706.03762, with all sines first. Raises
    ConfigError for a grid of several rows, and unless the width is even.
    """
    if grid[0] != 1:
        what = f"positions='sincos1d' is for sequences, of one row of patches, not {grid}"
        raise ConfigError(f"{what}: use sincos2d")
    if width % 2:
        raise ConfigError(f"positions='sincos1d' with model.width={width}: the width must be even")
    omega = 10_000.0 ** -(np.arange(0, width, 2) / width)
    angle = np.arange(grid[1])[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


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
    """The rule of `model.positions`. At most one field is set, and a rotation beside it."""

    table: Callable[[Grid, int], np.ndarray] | None = None  # (grid, width) -> fixed table
    is_learned: bool = False
    bias: Callable[[TokenLayout, int], np.ndarray] | None = None  # (layout, heads) -> bias_NxTxT
    rotation: Callable[[int], Rotary] | None = None  # (width of a head) -> rotation

    @property
    def has_table(self) -> bool:
        """Whether positions are added to the patches."""
        return self.is_learned or self.table is not None


POSITIONS: dict[str, PositionRule] = {
    "sincos2d": PositionRule(table=sincos2d),
    "sincos1d": PositionRule(table=sincos1d),
    "learned": PositionRule(is_learned=True),
    "alibi2d": PositionRule(bias=alibi2d),
    "none": PositionRule(),
}

ROTATIONS: dict[str, Callable[..., Rotary]] = {"rope2d": rope2d}


def _parse(positions: str) -> list[Call]:
    """The positions that `positions` adds up: at most one of POSITIONS, then at most one of ROTATIONS."""

    def plain(rule: PositionRule) -> PositionRule:
        return rule

    known = dict.fromkeys(POSITIONS, plain) | ROTATIONS
    calls = parse_calls(
        positions, known, where="model.positions", example="learned + rope2d(base=100)", operator=ast.Add
    )
    calls.sort(key=lambda call: call.name in ROTATIONS)
    number = sum(call.name in ROTATIONS for call in calls)
    if not calls or number > 1 or len(calls) - number > 1:
        raise ConfigError(
            f"model.positions={positions!r}: give one of {', '.join(POSITIONS)}, one of "
            f"{', '.join(ROTATIONS)}, or one of each, as in 'learned + rope2d(base=100)'"
        )
    return [call for call in calls if call.name != "none"] or calls


@functools.lru_cache(maxsize=64)
def position_rule(positions: str) -> PositionRule:
    """The rule of model.positions, such as "learned + rope2d(base=100)". Raises ConfigError."""
    rule = PositionRule()
    for call in _parse(positions):
        if call.name in ROTATIONS:
            rule = dataclasses.replace(
                rule, rotation=functools.partial(ROTATIONS[call.name], **call.arguments)
            )
        else:
            rule = POSITIONS[call.name]
    return rule


def rotation_arguments(positions: str) -> dict[str, Any] | None:
    """The arguments of the rotation in model.positions that are not the default; None without a rotation."""
    for call in _parse(positions):
        if call.name in ROTATIONS:
            known = inspect.signature(ROTATIONS[call.name]).parameters
            return {name: value for name, value in call.arguments.items() if value != known[name].default}
    return None


def canonical_positions(positions: str) -> str:
    """The text with named arguments, without those that are the default, and the rotation last.

    Raises ConfigError.
    """
    return _text(positions, rotation_arguments(positions) or {})


def positions_in_evaluation(positions: str) -> str:
    """The canonical text without the arguments of random coordinates, which only training has."""
    given = rotation_arguments(positions) or {}
    return _text(positions, {name: value for name, value in given.items() if name not in IN_TRAINING})


def _text(positions: str, arguments: dict[str, Any]) -> str:
    calls = _parse(positions)
    return " + ".join(str(c._replace(arguments=arguments) if c.name in ROTATIONS else c) for c in calls)
