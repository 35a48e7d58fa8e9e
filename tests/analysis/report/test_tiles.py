"""Grids of maps in one pair of axes: every cell is where its labels say, with its own values."""

import numpy as np
import pytest

from tests.fixtures.tiles import IMAGES, MAPS, cell_of, labels_of
from vit_registers.analysis.report.figures import WIDTH
from vit_registers.analysis.report.tiles import tiles

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (14, 14), (1, 2), (40, 2)])
def test_cells_have_their_values(grid):
    maps = [[RNG.random(grid, np.float32) for _ in range(3)] for _ in range(2)]
    figure = tiles([[None] * 3] * 2, maps, rows=("a", "b"), columns=("x", "y", "z"), label="l")
    assert labels_of(figure) == (["a", "b"], ["x", "y", "z"])
    for y in range(2):
        for x in range(3):
            np.testing.assert_array_equal(cell_of(figure, MAPS, y, x, grid), maps[y][x])


def test_images_of_one_channel_and_of_three_stand_beside_maps():
    grey, color = (RNG.integers(0, 256, (8, 8, channels), np.uint8) for channels in (1, 3))
    figure = tiles([[grey, color], [None, None]], [[None, None], [np.ones((2, 2)), None]], rows=("i", "m"))
    np.testing.assert_array_equal(cell_of(figure, IMAGES, 0, 0, (8, 8)), np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(cell_of(figure, IMAGES, 0, 1, (8, 8)), color)
    assert (cell_of(figure, MAPS, 1, 0, (2, 2)) == 1).all() and cell_of(figure, MAPS, 1, 1, (2, 2)) is None


def test_no_figure_is_wider_than_a_phone():
    for columns in (1, 6, 16, 40):
        maps = [[np.ones((4, 4))] * columns]
        figure = tiles([[None] * columns], maps, rows=("a model with a very long name",), label="l")
        assert figure.get_size_inches()[0] <= WIDTH + 1e-9
