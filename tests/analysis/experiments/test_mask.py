"""Links between the levels of masks: against figures read off the public code, and masks made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from vit_registers.analysis.experiments.mask import EXPERIMENT, links
from vit_registers.analysis.options import Options
from vit_registers.config import Model
from vit_registers.models.masks import build_mask
from vit_registers.models.tokens import TokenLayout
from vit_registers.models.vit import token_layout


def _layout(*grids, has_cls=True, num_registers=2):
    *coarse, fine = grids
    return TokenLayout(
        has_cls=has_cls, num_registers=num_registers, summary_grids=tuple(coarse), patch_grid=fine
    )


# Of 14 x 14 patches: (sides, coarse, fine) -> % of the cells that are linked as they lie, fewest, most.
RELEASED = {
    ((2, 14), 2, 14): (25.0, 0, 98),
    ((3, 14), 3, 14): (12.2, 0, 70),
    ((1, 4, 14), 1, 14): (100.0, 196, 196),
    ((1, 4, 14), 4, 14): (11.2, 0, 16),
    ((1, 3, 7, 14), 3, 7): (26.5, 0, 9),
    ((1, 3, 7, 14), 3, 14): (5.1, 0, 56),
    ((1, 3, 7, 14), 7, 14): (1.5, 0, 9),
}


@pytest.mark.parametrize(("case", "expected"), RELEASED.items(), ids=str)
def test_released_mask_has_the_known_agreement(case, expected):
    sides, coarse, fine = case
    layout = _layout(*((side, side) for side in sides))
    found = {
        (link.coarse[0], link.fine[0]): link for link in links(build_mask("fractal_released", layout), layout)
    }
    assert len(found) == len(sides) * (len(sides) - 1) // 2
    link = found[coarse, fine]
    assert (round(100 * link.agreement, 1), link.tokens_S.min(), link.tokens_S.max()) == expected
    assert (link.linked_HxW >= 0).all()  # every cell has one owner, if a wrong one


@pytest.mark.parametrize("mask", ["fractal", "fractal_local"])
@pytest.mark.parametrize("grids", [((1, 1), (3, 3), (7, 7), (14, 14)), ((2, 3), (5, 7))], ids=str)
def test_fractal_masks_link_cells_as_they_lie(mask, grids):
    layout = _layout(*grids)
    for link in links(build_mask(mask, layout), layout):
        assert link.agreement == 1.0
        np.testing.assert_array_equal(link.linked_HxW, link.geometric_HxW)
        counts = np.bincount(link.geometric_HxW.ravel(), minlength=len(link.tokens_S))
        np.testing.assert_array_equal(link.tokens_S, counts)


def test_cells_of_no_coarse_cell_or_of_several_agree_with_none():
    layout = _layout((1, 2), (2, 2), has_cls=False, num_registers=1)
    mask_TxT = build_mask("fractal", layout).copy()
    mask_TxT[3, 1:3] = False, False  # the first patch, row 3, sees neither of the summaries 1 and 2
    mask_TxT[4, 1:3] = True  # the second sees both
    mask_TxT[5, 1:3] = False, True  # the third sees the wrong one
    (link,) = links(mask_TxT, layout)
    np.testing.assert_array_equal(link.linked_HxW, [[-1, -1], [1, 1]])
    np.testing.assert_array_equal(link.geometric_HxW, [[0, 1], [0, 1]])
    assert link.agreement == 0.25
    np.testing.assert_array_equal(link.tokens_S, [1, 3])


def _subject(name, **settings):
    model = Model(width=16, depth=1, num_heads=2, patch_size=4, image_size=(16, 16), **settings)
    return SimpleNamespace(name=name, model=model, layout=token_layout(model))


def test_section_has_links_of_masks_and_a_gap_for_full_attention():
    full, fractal = _subject("full"), _subject("fractal", summary_factor=2, mask="fractal")
    result = EXPERIMENT.result([full, fractal], Options())
    assert result.gaps == ["full: model.mask='none', all tokens attend to all"]
    assert result.tables[1].rows == [
        ("fractal", "1 x 1", "2 x 2", 4, 4, 100.0),
        ("fractal", "1 x 1", "4 x 4", 16, 16, 100.0),
        ("fractal", "2 x 2", "4 x 4", 4, 4, 100.0),
    ]
    assert [picture.name for picture in result.pictures] == ["mask-fractal", "links-fractal"]
    linked, lies = (axes.images[0].get_array() for axes in result.pictures[1].figure.axes)
    np.testing.assert_array_equal(linked, lies)
    assert len(np.unique(linked.reshape(-1, 3), axis=0)) == 4  # a colour for each block


def test_only_full_attention_gives_gaps_and_no_table():
    result = EXPERIMENT.result([_subject("full")], Options())
    assert result.gaps and not result.tables and not result.pictures
