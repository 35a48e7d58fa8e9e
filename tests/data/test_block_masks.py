"""Block masks: their statistics against those of DINOv2's code, their numbers, and what they depend on."""

import numpy as np
import pytest

from vit_registers.data.block_masks import BlockMasks, batch_masks

RELEASED = BlockMasks(grid=(14, 14), num_crops=64, is_exact=False)


@pytest.mark.parametrize(
    ("grid", "num_crops", "number"),
    [
        ((14, 14), 64, 1906),
        ((14, 14), 128, 3771),
        ((16, 16), 64, 2496),
        ((16, 16), 24, 967),
        ((37, 37), 24, 5196),
    ],
)
def test_numbers_of_the_released_code(grid, num_crops, number):
    assert BlockMasks(grid=grid, num_crops=num_crops).num_masked == number


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mean"), [(20, 19.94), (40, 39.94), (60, 59.94), (80, 79.93), (98, 97.91)])
def test_realised_numbers(count, mean):
    """Means of 6,000 masks of the released code; 6 to 8 % of them have fewer patches than requested."""
    rng = np.random.default_rng(count)
    found = np.array([RELEASED.draw_one(rng, count).sum() for _ in range(1500)])
    assert found.max() <= count
    np.testing.assert_allclose(found.mean(), mean, atol=0.03)
    assert 0.04 < (found < count).mean() < 0.105


@pytest.mark.slow
def test_masks_prefer_the_centre_as_the_released_ones():
    rng = np.random.default_rng(0)
    share = np.mean([RELEASED.draw_one(rng, 60) for _ in range(3000)], axis=0)
    corners, edges = share[::13, ::13].mean(), share[[0, 13, 6, 7], [6, 7, 0, 13]].mean()
    np.testing.assert_allclose([corners, edges, share[6:8, 6:8].mean()], [0.044, 0.148, 0.541], atol=0.02)


def test_a_batch_of_the_released_variant():
    totals = [RELEASED.draw(np.random.default_rng(seed)).sum() for seed in range(4)]
    np.testing.assert_allclose(np.mean(totals), 1863, atol=12)


@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (7, 12)])
def test_exact_masks_have_their_numbers(grid):
    masks = BlockMasks(grid=grid, num_crops=16, min_patches=1 if grid == (4, 4) else 4)
    for seed in range(5):
        drawn = masks.draw(np.random.default_rng(seed))
        assert drawn.shape == (16, masks.num_patches)
        counts = drawn.sum(axis=1)
        assert sorted(counts) == [0] * 8 + list(masks.most)
        assert drawn.sum() == masks.num_masked


def test_masks_depend_on_seed_step_and_group_only():
    masks = BlockMasks(grid=(8, 8), num_crops=8)
    whole = batch_masks(masks, seed=3, step=5, first=0, number=16)
    assert whole.shape == (16, 2, 64)
    parts = [batch_masks(masks, seed=3, step=5, first=i, number=8) for i in (0, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in ({"seed": 4, "step": 5}, {"seed": 3, "step": 6}):
        assert (batch_masks(masks, first=0, number=16, **other) != whole).any()
    assert (whole[:4] != whole[4:8]).any()
    assert (whole[:, 0].sum(axis=1) != whole[:, 1].sum(axis=1)).any()
