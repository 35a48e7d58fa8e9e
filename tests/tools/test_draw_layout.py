"""Pictures of layouts and masks: the colours follow the links of the mask, and mask strings are flags."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.draw_layout import EVERYWHERE, _colors
from vit_registers.models.masks import build_mask, owners
from vit_registers.models.tokens import TokenLayout, summary_grids


def colors(mask, factor=2):
    grid = (8, 8)
    layout = TokenLayout(
        has_cls=True, num_registers=0, summary_grids=summary_grids(grid, factor), patch_grid=grid
    )
    reference = min(1, len(layout.grids) - 1)
    mask_TxT = build_mask(mask, layout)
    return [_colors(layout, mask_TxT, reference, level) for level in range(len(layout.grids))]


def test_cells_have_the_colour_of_the_block_that_the_mask_links_them_to():
    coarsest, reference, finer, patches = colors("fractal")
    assert (coarsest == EVERYWHERE).all()
    np.testing.assert_array_equal(reference, [0, 1, 2, 3])
    np.testing.assert_array_equal(finer, owners((2, 2), (4, 4)))
    np.testing.assert_array_equal(patches, owners((2, 2), (8, 8)))
    np.testing.assert_array_equal(colors("one_way")[-1], patches)
    np.testing.assert_array_equal(colors("window(radius=1)")[-1], patches)  # links all: as the cells lie
    moved = np.roll(patches.reshape(8, 8), (3, 3), axis=(0, 1)).ravel()
    np.testing.assert_array_equal(colors("shifted(offset=3)")[-1], moved)
    (alone,) = colors("window(radius=1)", factor=None)
    assert (alone == EVERYWHERE).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("--config=configs/digits.py:mask=window(radius=2),registers=1",), 0),
        (("--config=configs/digits.py:k=2", "--config.model.mask=shifted(offset=1)"), 0),
        (("--config=configs/digits.py:k=2", "--config.model.mask=shifted"), 2),
    ],
)
def test_masks_with_arguments_are_flags_and_arguments_of_a_config(quick, tmp_path, settings, code):
    command = [sys.executable, "-m", "tools.draw_layout", *settings, f"--out={tmp_path}/x.png"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=quick(), capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "x.png").exists() == (code == 0)
    if code:
        assert done.stderr == "error: model.mask: shifted requires 'offset', as in shifted(offset=...)\n"
