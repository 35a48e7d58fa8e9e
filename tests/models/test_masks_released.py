"""The mask of the public fractal code against the closed forms that were read off it, level by level.

Patches are numbered p = 14 row + column. The owner of a token in a coarser level is the one summary
token of that level that it is linked to.
"""

import itertools

import numpy as np
import pytest

from vit_registers.models.masks import build_mask
from vit_registers.models.tokens import TokenLayout

P = np.arange(196)
ROW = P // 14
Q = np.arange(49)  # tokens of the 7 x 7 level


def released(sides, *, has_cls=False, num_registers=0):
    *coarse, patches = [(side, side) for side in sides]
    layout = TokenLayout(
        has_cls=has_cls, num_registers=num_registers, summary_grids=tuple(coarse), patch_grid=patches
    )
    return layout, build_mask("fractal_released", layout)


def owner_3_of_patch():
    """Level 3 of [1, 3, 7, 14]: the write for level 7 spills over into the first 32 patches."""
    owner = np.empty(196, int)
    owner[:32] = 3 * ((P[:32] + 49) // 27) + (P[:32] + 49) % 9 // 3
    u = P[32:] - 32
    owner[32:] = 3 * (u // 243) + u % 27 // 9
    return owner


# (sides, coarse level, fine level) -> owner of each token of the fine level
OWNERS = {
    ((2, 14), 0, 1): ROW % 2,
    ((3, 14), 0, 1): ROW % 3,
    ((1, 4, 14), 0, 1): np.zeros(16, int),
    ((1, 4, 14), 0, 2): np.zeros(196, int),
    ((1, 4, 14), 1, 2): 4 * (P // 64) + P % 16 // 4,
    ((1, 3, 7, 14), 0, 1): np.zeros(9, int),
    ((1, 3, 7, 14), 0, 2): np.zeros(49, int),
    ((1, 3, 7, 14), 0, 3): np.zeros(196, int),
    ((1, 3, 7, 14), 1, 2): 3 * (Q // 27) + Q % 9 // 3,
    ((1, 3, 7, 14), 1, 3): owner_3_of_patch(),
    ((1, 3, 7, 14), 2, 3): 7 * (P // 63) + P % 21 // 3,
}
SIDES = sorted({sides for sides, _, _ in OWNERS})


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize(("has_cls", "num_registers"), [(False, 0), (True, 0), (False, 3), (True, 2)])
def test_every_level_pair_has_the_owners_of_the_released_code(sides, has_cls, num_registers):
    layout, mask_TxT = released(sides, has_cls=has_cls, num_registers=num_registers)
    first = has_cls + num_registers
    expected = np.zeros((layout.num_tokens, layout.num_tokens), bool)
    expected[:first] = expected[:, :first] = True
    starts = first + np.cumsum([0, *(side**2 for side in sides)])
    at = [slice(*ends) for ends in itertools.pairwise(starts)]
    for where in at:
        expected[where, where] = True
    for (known, coarse, fine), owner in OWNERS.items():
        if known == sides:
            is_linked = owner[:, None] == np.arange(sides[coarse] ** 2)[None]
            expected[at[fine], at[coarse]] = is_linked
            expected[at[coarse], at[fine]] = is_linked.T
    np.testing.assert_array_equal(mask_TxT, expected)


# What each summary token is linked to: counts as they were published with the analysis of the code.
@pytest.mark.parametrize(
    ("sides", "coarse", "fine", "counts"),
    [
        ((2, 14), 0, 1, [98, 98, 0, 0]),
        ((3, 14), 0, 1, [70, 70, 56, 0, 0, 0, 0, 0, 0]),
        ((1, 4, 14), 1, 2, [16] * 12 + [4, 0, 0, 0]),
        ((1, 3, 7, 14), 1, 2, [9, 9, 9, 9, 7, 6, 0, 0, 0]),
        ((1, 3, 7, 14), 1, 3, [56, 54, 54, 0, 2, 3, 9, 9, 9]),
        ((1, 3, 7, 14), 2, 3, [9] * 21 + [3, 3, 1] + [0] * 25),
    ],
    ids=str,
)
def test_summary_tokens_own_as_many_as_in_the_released_code(sides, coarse, fine, counts):
    layout, mask_TxT = released(sides)
    at = layout.grid_slices
    np.testing.assert_array_equal(mask_TxT[at[coarse], at[fine]].sum(axis=1), counts)


@pytest.mark.parametrize(
    ("sides", "fraction"),
    [((2, 14), 0.971), ((3, 14), 0.925), ((1, 4, 14), 0.870), ((1, 3, 7, 14), 0.650)],
    ids=str,
)
def test_allowed_fraction_is_the_published_one(sides, fraction):
    assert round(float(released(sides)[1].mean()), 3) == fraction


@pytest.mark.parametrize("sides", [(1, 2, 4, 8, 16), (1, 4, 16), (1, 3, 9), (1, 14)], ids=str)
@pytest.mark.parametrize("num_registers", [0, 2])
def test_released_mask_is_the_geometric_one_where_sides_are_powers(sides, num_registers):
    layout, mask_TxT = released(sides, num_registers=num_registers)
    np.testing.assert_array_equal(mask_TxT, build_mask("fractal", layout))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_released_mask_differs_from_the_geometric_one_on_14_x_14(sides):
    layout, mask_TxT = released(sides)
    assert (mask_TxT != build_mask("fractal", layout)).any()
