"""Averaged maps, their spread, centre and likeness: against scipy, loops and cases worked by hand."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from vit_registers.analysis.measures.focus import MapSums, focus, group_mass, map_similarity
from vit_registers.errors import DataError

RNG = np.random.default_rng(1)


def test_mean_map_in_batches_is_that_of_all_images():
    maps = RNG.random((7, 3, 4, 5)).astype(np.float32)
    sums = MapSums()
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        sums.add(maps[part])
    assert sums.num_images == 7
    np.testing.assert_allclose(sums.mean_ExHxW, maps.astype(float).mean(axis=0), rtol=1e-12)


def test_mean_map_keeps_small_weights_over_many_float16_batches():
    sums = MapSums()
    for _ in range(3000):  # a sum in float16 would stop at 2048 x the step
        sums.add(np.full((1, 1, 1, 2), 0.001, np.float16))
    np.testing.assert_allclose(sums.mean_ExHxW, float(np.float16(0.001)), rtol=1e-12)


def test_focus_is_scipys():
    maps = RNG.random((3, 4, 6))
    found = focus(maps)
    for i, one in enumerate(maps):
        assert found.entropy_nats_E[i] == pytest.approx(scipy.stats.entropy(one.ravel()))
        centre = scipy.ndimage.center_of_mass(one)
        assert tuple(found.centre_patches_Ex2[i]) == pytest.approx(centre)
        assert found.distance_patches_E[i] == pytest.approx(np.hypot(centre[0] - 1.5, centre[1] - 2.5))
    np.testing.assert_allclose(found.entropy_share_E, found.entropy_nats_E / np.log(24))


def test_focus_of_even_and_of_single_patch_maps():
    corner = np.zeros((3, 5))
    corner[2, 0] = 0.4
    found = focus(np.stack([np.full((3, 5), 0.2), corner]))
    np.testing.assert_allclose(found.entropy_share_E, [1, 0], atol=1e-12)
    np.testing.assert_allclose(found.centre_patches_Ex2, [[1, 2], [2, 0]], atol=1e-12)
    np.testing.assert_allclose(found.distance_patches_E, [0, np.sqrt(5)], atol=1e-12)


def test_focus_does_not_depend_on_scale_and_follows_a_flip():
    maps = RNG.random((2, 4, 4))
    found, scaled, flipped = focus(maps), focus(0.01 * maps), focus(maps[:, ::-1])
    for x, y in zip(found, scaled, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10)
    np.testing.assert_allclose(flipped.centre_patches_Ex2[:, 0], 3 - found.centre_patches_Ex2[:, 0])
    np.testing.assert_allclose(flipped.centre_patches_Ex2[:, 1], found.centre_patches_Ex2[:, 1])


def test_focus_of_a_map_of_zeros_is_nan():
    found = focus(np.stack([np.zeros((2, 2)), np.ones((2, 2))]))
    for values in found:
        assert np.isnan(values[0]).all() and np.isfinite(values[1]).all()


def test_similarity_is_the_mean_over_pairs():
    maps = RNG.random((3, 4, 2, 5))
    expected = []
    for image in maps:
        flat = [one.ravel() / np.linalg.norm(one) for one in image]
        expected.append(np.mean([flat[i] @ flat[j] for i in range(4) for j in range(i)]))
    np.testing.assert_allclose(map_similarity(maps), expected, rtol=1e-12)


def test_similarity_of_equal_apart_and_missing_registers():
    even = np.ones((1, 3, 2, 2)) * np.array([1.0, 2.0, 0.5])[None, :, None, None]
    apart = np.eye(4).reshape(1, 4, 2, 2)
    np.testing.assert_allclose(map_similarity(even), 1)
    np.testing.assert_allclose(map_similarity(apart), 0, atol=1e-15)
    assert map_similarity(even[:, :1]) is None
    assert map_similarity(even[:, :0]) is None
    apart[0, 0] = 0
    assert np.isnan(map_similarity(apart)).all()


def test_group_mass_is_the_sum_over_tokens_and_mean_over_heads():
    weight = RNG.dirichlet(np.ones(9), size=(2, 3, 4))  # BxNxE, over T
    groups = {"cls": slice(0, 1), "registers": slice(1, 3), "summaries": slice(3, 3), "patches": slice(3, 9)}
    found = group_mass(weight, groups)
    np.testing.assert_allclose(sum(found.values()), 1)
    np.testing.assert_array_equal(found["summaries"], 0)
    for image, query in np.ndindex(2, 4):
        by_head = [weight[image, head, query, 1] + weight[image, head, query, 2] for head in range(3)]
        assert found["registers"][image, query] == pytest.approx(sum(by_head) / 3)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="attention maps"):
        MapSums().add(np.full((1, 1, 2, 2), np.nan))
