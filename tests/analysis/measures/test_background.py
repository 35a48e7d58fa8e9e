"""Variance inside and outside of boxes, by closed forms."""

import numpy as np
import pytest

from vit_registers.analysis.measures.background import RegionSums, cells_of_boxes


def test_a_patch_is_inside_by_its_centre_and_ends_are_exclusive():
    # Patches of 4 x 4 px: centres at 2, 6, 10; the image has 12 x 9 px, so the last column is mostly padding.
    cells = cells_of_boxes(np.array([[2, 2, 6, 10]]), (3, 3), (4, 4), (12, 9))
    assert cells.is_image_P.reshape(3, 3).tolist() == [[True, True, False]] * 3
    assert cells.is_inside_P.reshape(3, 3).tolist() == [
        [True, False, False],
        [True, False, False],
        [False, False, False],
    ]
    both = cells_of_boxes(np.array([[2, 2, 6, 10], [5, 9, 99, 99]]), (3, 3), (4, 4), (12, 9))
    assert both.is_inside_P.reshape(3, 3)[2].tolist() == [False, True, False]  # over the edge, and padding
    assert not cells_of_boxes(np.zeros((0, 4)), (3, 3), (4, 4), (12, 9)).is_inside_P.any()
    # A patch of an image that was shrunk is larger in its pixels, and may have other sides.
    wide = cells_of_boxes(np.array([[0, 0, 5, 5]]), (1, 2), (8, 10), (8, 20))
    assert wide.is_inside_P.tolist() == [False, False]
    assert cells_of_boxes(np.array([[0, 0, 5.1, 4.1]]), (1, 2), (8, 10), (8, 20)).is_inside_P.tolist() == [
        True,
        False,
    ]


def test_variances_are_those_of_the_law_of_total_variance():
    """Two images: values 1 and 3 (mean 2), and 10 and 14 (mean 12)."""
    sums = RegionSums()
    sums.add(np.array([[1.0], [3.0]]))
    sums.add(np.zeros((0, 1)))  # an image without a patch of the region
    sums.add(np.array([[10.0], [14.0]]))
    found = sums.result()
    within = (1 + 1 + 4 + 4) / 4
    assert found.num_patches == 4 and found.within == pytest.approx(within)
    assert found.total == pytest.approx(within + 5**2)  # image means 2 and 12 around 7
    assert found.share == pytest.approx(found.total / ((1 + 9 + 100 + 196) / 4))


def test_many_images_agree_with_numpy_whatever_their_mean():
    rng = np.random.default_rng(0)
    images = [rng.normal(1e4, 0.1 + i, (5 + i, 3)) for i in range(6)]
    sums = RegionSums()
    for image in images:
        sums.add(image)
    joined = np.concatenate(images)
    assert sums.result().total == pytest.approx(np.var(joined, axis=0).sum())
    assert sums.result().within == pytest.approx(
        sum(len(x) * np.var(x, axis=0).sum() for x in images) / len(joined)
    )


def test_nothing_and_zeros():
    assert RegionSums().result() == (0, None, None, None)
    sums = RegionSums()
    sums.add(np.zeros((3, 2)))
    assert sums.result() == (3, 0.0, 0.0, None)
    sums = RegionSums()
    sums.add(np.full((3, 2), 0.1))
    assert sums.result().share == 0.0
