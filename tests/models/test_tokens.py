"""Which tokens there are, in which order, on which grids."""

import numpy as np
import pytest

from vit_registers.errors import ConfigError
from vit_registers.models.tokens import TokenLayout, summary_grids


@pytest.mark.parametrize(
    ("factor", "sides", "count"),
    [(7, [2], 4), (6, [2], 4), (5, [2], 4), (4, [3], 9), (3, [1, 4], 17), (2, [1, 3, 7], 59), (8, [1], 1)],
)
def test_summary_counts_of_the_paper_on_14_x_14(factor, sides, count):
    grids = summary_grids((14, 14), factor)
    assert grids == tuple((side, side) for side in sides)
    layout = TokenLayout(has_cls=False, num_registers=0, summary_grids=grids, patch_grid=(14, 14))
    assert layout.num_summaries == count


@pytest.mark.parametrize(
    ("grid", "factor", "grids"),
    [
        ((16, 16), 2, ((1, 1), (2, 2), (4, 4), (8, 8))),
        ((16, 16), 4, ((1, 1), (4, 4))),
        ((8, 16), 2, ((1, 2), (2, 4), (4, 8))),
        ((5, 14), 3, ((1, 4),)),
        ((14, 14), None, ()),
    ],
)
def test_summary_grids_go_from_coarse_to_fine_and_keep_every_side_at_least_1(grid, factor, grids):
    assert summary_grids(grid, factor) == grids


@pytest.mark.parametrize(
    ("grid", "factor"), [((14, 14), 15), ((14, 14), 1), ((14, 14), 0), ((14, 14), -2), ((4, 9), 5)]
)
def test_a_factor_that_does_not_fit_the_grid_is_refused(grid, factor):
    with pytest.raises(ConfigError, match=f"summary_factor={factor} does not fit .* {grid[0]} x {grid[1]}"):
        summary_grids(grid, factor)


@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("num_registers", [0, 1, 4])
@pytest.mark.parametrize("grids", [(), ((2, 2),), ((1, 1), (3, 3), (7, 7)), ((1, 2), (2, 4))])
def test_slices_of_a_layout_partition_the_sequence_in_order(has_cls, num_registers, grids):
    layout = TokenLayout(
        has_cls=has_cls, num_registers=num_registers, summary_grids=grids, patch_grid=(14, 10)
    )
    tokens = np.arange(layout.num_tokens)
    groups = [tokens[where] for where in (layout.cls, layout.registers, layout.summaries, layout.patches)]
    sizes = [int(has_cls), num_registers, sum(rows * columns for rows, columns in grids), 140]
    assert [len(group) for group in groups] == sizes
    np.testing.assert_array_equal(np.concatenate(groups), tokens)
    assert layout.grids == (*grids, (14, 10))
    by_grid = [tokens[where] for where in layout.grid_slices]
    assert [len(group) for group in by_grid] == [rows * columns for rows, columns in layout.grids]
    np.testing.assert_array_equal(np.concatenate(by_grid), np.concatenate(groups[2:]))
