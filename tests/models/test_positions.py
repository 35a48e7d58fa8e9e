"""Position tables and biases against their formulas; resampling against torch."""

import math

import numpy as np
import pytest

from vit_registers.errors import ConfigError
from vit_registers.models.positions import POSITIONS, alibi2d, alibi_slopes, sincos2d
from vit_registers.models.tokens import TokenLayout


@pytest.mark.parametrize(("grid", "width"), [((3, 5), 16), ((14, 14), 384), ((1, 1), 8)])
def test_sincos2d_is_the_formula_with_x_first(grid, width):
    table_PxD = sincos2d(grid, width)
    assert table_PxD.shape == (grid[0] * grid[1], width)
    assert table_PxD.dtype == np.float32
    quarter = width // 4
    for row, column, i in [(r, c, i) for r in range(grid[0]) for c in range(grid[1]) for i in range(quarter)]:
        omega = 10_000 ** (-i / (quarter - 1))
        x, y = column * omega, row * omega
        expected = [math.sin(x), math.cos(x), math.sin(y), math.cos(y)]
        np.testing.assert_allclose(table_PxD[row * grid[1] + column, i::quarter], expected, atol=1e-6)


def test_sincos2d_of_a_single_cell_is_0_for_sines_and_1_for_cosines():
    np.testing.assert_array_equal(sincos2d((1, 1), 8)[0], [0, 0, 1, 1, 0, 0, 1, 1])


@pytest.mark.parametrize("width", [4, 6, 18, 2])
def test_sincos2d_refuses_a_width_that_it_cannot_fill(width):
    with pytest.raises(ConfigError, match=f"width={width}: the width must be a multiple of 4"):
        sincos2d((2, 2), width)


@pytest.mark.parametrize(
    ("num_heads", "exponents"),
    [
        (6, [2, 4, 6, 8, 1, 3]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (16, [0.5 * i for i in range(1, 17)]),
        (3, [4, 8, 2]),
        (1, [8]),
    ],
)
def test_alibi_slopes_are_the_published_powers_of_two(num_heads, exponents):
    np.testing.assert_allclose(alibi_slopes(num_heads), [2.0**-e for e in exponents], rtol=1e-12)


@pytest.mark.parametrize(
    "layout",
    [
        TokenLayout(has_cls=True, num_registers=2, summary_grids=((1, 1), (2, 2)), patch_grid=(4, 4)),
        TokenLayout(has_cls=False, num_registers=0, summary_grids=((1, 2),), patch_grid=(3, 5)),
        TokenLayout(has_cls=False, num_registers=3, summary_grids=(), patch_grid=(2, 3)),
    ],
    ids=str,
)
def test_alibi2d_is_minus_slope_times_distance_within_a_grid_and_0_elsewhere(layout):
    bias_NxTxT = alibi2d(layout, 6)
    assert bias_NxTxT.dtype == np.float32
    where = [None] * (layout.has_cls + layout.num_registers)
    for level, (rows, columns) in enumerate((*layout.summary_grids, layout.patch_grid)):
        where += [(level, row, column) for row in range(rows) for column in range(columns)]
    slopes = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
    expected = np.zeros((6, len(where), len(where)))
    for n, t, s in np.ndindex(expected.shape):
        one, other = where[t], where[s]
        if one and other and one[0] == other[0]:
            expected[n, t, s] = -slopes[n] * math.hypot(one[1] - other[1], one[2] - other[2])
    np.testing.assert_allclose(bias_NxTxT, expected, rtol=1e-6)


def test_a_rule_of_positions_is_at_most_one_thing():
    for name, rule in POSITIONS.items():
        kinds = [rule.table is not None, rule.is_learned, rule.bias is not None]
        assert sum(kinds) == (name != "none"), name
