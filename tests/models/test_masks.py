"""The fractal masks against their rule, stated again here pair by pair."""

import functools
import re

import numpy as np
import pytest

from vit_registers.errors import ConfigError
from vit_registers.models.masks import build_mask, owners
from vit_registers.models.tokens import TokenLayout, summary_grids


def layout_of(grid, factor, *, has_cls=False, num_registers=0, grids=None):
    grids = summary_grids(grid, factor) if grids is None else grids
    return TokenLayout(has_cls=has_cls, num_registers=num_registers, summary_grids=grids, patch_grid=grid)


@functools.lru_cache
def tokens_of(layout):
    """Every token as None (cls, registers) or (level, row, column), in sequence order."""
    tokens = [None] * (layout.has_cls + layout.num_registers)
    for level, (rows, columns) in enumerate((*layout.summary_grids, layout.patch_grid)):
        tokens += [(level, row, column) for row in range(rows) for column in range(columns)]
    return tokens


def is_inside(fine, coarse, fine_grid, coarse_grid):
    """Whether the cell `fine` of the fine grid belongs to the cell `coarse` of the coarse grid."""
    return all(
        coarse[axis] * fine_grid[axis]
        <= fine[axis] * coarse_grid[axis]
        < (coarse[axis] + 1) * fine_grid[axis]
        for axis in (0, 1)
    )


def may_attend(layout, one, other):
    """The rule of the fractal mask for two tokens."""
    if one is None or other is None:
        return True
    (level1, *cell1), (level2, *cell2) = sorted([one, other])
    if level1 == level2:
        return True
    grids = (*layout.summary_grids, layout.patch_grid)
    return is_inside(cell2, cell1, grids[level2], grids[level1])


def brute_force(layout):
    tokens = tokens_of(layout)
    return np.array([[may_attend(layout, one, other) for other in tokens] for one in tokens])


CASES = [(side, factor) for side in (14, 16, 8) for factor in range(2, 8)]


@pytest.mark.parametrize(("side", "factor"), CASES)
def test_fractal_is_the_rule_pair_by_pair(side, factor):
    layout = layout_of((side, side), factor)
    np.testing.assert_array_equal(build_mask("fractal", layout), brute_force(layout))


@pytest.mark.parametrize(
    "layout",
    [
        layout_of((8, 8), 2, has_cls=True),
        layout_of((8, 8), 3, num_registers=3),
        layout_of((8, 8), 2, has_cls=True, num_registers=2),
        layout_of((14, 8), 2, has_cls=True, num_registers=1),
        layout_of((5, 9), 2),
        layout_of((4, 4), 4, has_cls=True),  # one level, 1 x 1
        layout_of((3, 5), None, grids=((2, 2), (4, 4)), num_registers=1),  # the image is smaller than trained
    ],
    ids=str,
)
def test_fractal_is_the_rule_with_extra_tokens_and_on_other_grids(layout):
    np.testing.assert_array_equal(build_mask("fractal", layout), brute_force(layout))


@pytest.mark.parametrize("coarse", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("fine", [7, 14, 16])
def test_owners_are_blocks_of_floor_of_the_scaled_coordinates(coarse, fine):
    expected = [
        [(r * coarse // fine) * coarse + c * coarse // fine for c in range(fine)] for r in range(fine)
    ]
    np.testing.assert_array_equal(owners((coarse, coarse), (fine, fine)), np.ravel(expected))


def test_owners_of_14_on_3_are_blocks_of_5_5_and_4():
    counts = np.bincount(owners((3, 3), (14, 14)))
    np.testing.assert_array_equal(counts, [25, 25, 20, 25, 25, 20, 20, 20, 16])


@pytest.mark.parametrize("name", ["fractal", "fractal_released", "fractal_local"])
@pytest.mark.parametrize(("side", "factor"), CASES)
def test_masks_are_symmetric_with_one_owner_per_level_and_no_empty_row(name, side, factor):
    layout = layout_of((side, side), factor, has_cls=True, num_registers=2)
    mask_TxT = build_mask(name, layout)
    assert mask_TxT.dtype == bool
    np.testing.assert_array_equal(mask_TxT, mask_TxT.T)
    assert mask_TxT.diagonal().all()
    assert mask_TxT[:3].all()
    assert mask_TxT[:, :3].all()
    for level in layout.grid_slices[:-1]:
        np.testing.assert_array_equal(mask_TxT[layout.patches, level].sum(axis=1), 1)


@pytest.mark.parametrize(("grid", "factor"), [((14, 14), 4), ((14, 14), 2), ((8, 14), 3), ((4, 4), 4)])
def test_fractal_local_confines_patches_to_their_finest_summary_cell(grid, factor):
    layout = layout_of(grid, factor, has_cls=True, num_registers=1)
    tokens, finest = tokens_of(layout), layout.summary_grids[-1]
    expected = brute_force(layout)
    cells = [
        next(cell for cell in np.ndindex(finest) if is_inside(tokens[patch][1:], cell, grid, finest))
        for patch in range(layout.num_tokens)[layout.patches]
    ]
    expected[layout.patches, layout.patches] = [[one == other for other in cells] for one in cells]
    np.testing.assert_array_equal(build_mask("fractal_local", layout), expected)


@pytest.mark.parametrize(("factor", "density"), [(4, 0.897), (2, 0.623)])
def test_density_of_the_16_x_16_mask_is_the_published_one(factor, density):
    mask_TxT = build_mask("fractal", layout_of((16, 16), factor))
    assert round(float(mask_TxT.mean()), 3) == density


def test_no_mask_is_none():
    assert build_mask("none", layout_of((4, 4), 2)) is None


@pytest.mark.parametrize(
    "mask", ["fractal", "fractal_released", "fractal_local", "shifted(offset=1)", "one_way"]
)
def test_a_mask_without_summary_tokens_is_refused(mask):
    with pytest.raises(ConfigError, match=f"model.mask='{re.escape(mask)}' requires summary tokens"):
        build_mask(mask, layout_of((4, 4), None))


def test_an_unknown_mask_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"model\.mask='fractl' is unknown: did you mean 'fractal'\?"):
        build_mask("fractl", layout_of((4, 4), 2))


def test_released_mask_of_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ConfigError, match="square grids only"):
        build_mask("fractal_released", layout_of((8, 4), 2))
