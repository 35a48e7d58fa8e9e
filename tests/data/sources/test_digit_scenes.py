"""Scenes of digits: what is drawn, where, and from which digits."""

import numpy as np
import pytest
from PIL import Image

from vit_registers.data.sources import digit_scenes
from vit_registers.data.sources.digit_scenes import BACKGROUND_M, CLASS_NAMES, DIGIT_M, SIDE, scene
from vit_registers.errors import DataError


def test_a_scene_is_a_function_of_seed_split_and_index():
    first, again = scene("train", 3), scene("train", 3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (scene("train", 4), scene("test", 3), scene("train", 3, seed=1)):
        assert (first.image_HxWx1 != other.image_HxWx1).any()


def test_labels_belong_to_the_pixels():
    classes = set()
    for index in range(200):
        image, label, depth = scene("test", index)
        assert image.shape == (SIDE, SIDE, 1) and image.dtype == label.dtype == np.uint8
        assert ((label > 0) == (image[..., 0] > 0)).all() and label.any()
        assert (depth[label == 0] == BACKGROUND_M).all()
        assert ((depth[label > 0] >= DIGIT_M / 1.5) & (depth[label > 0] <= DIGIT_M)).all()
        classes |= set(np.unique(label))
    assert classes == set(range(len(CLASS_NAMES)))


def test_the_nearest_digit_is_on_top(monkeypatch):
    """With solid digits in every cell, a pixel has the least depth of all digits that cover it."""
    solid = np.full((20, 8, 8, 1), 255, np.uint8), np.arange(20, dtype=np.int32) % 10
    monkeypatch.setattr(digit_scenes, "load_split", lambda split: solid)
    monkeypatch.setattr(digit_scenes, "_OCCUPIED", 1.0)
    painted = []
    overlap = digit_scenes._overlap

    def recorded(top, left, side):
        target, own = overlap(top, left, side)
        painted.append((target, side))
        return target, own

    monkeypatch.setattr(digit_scenes, "_overlap", recorded)
    for index in range(10):
        painted.clear()
        depth = scene("train", index).depth_HxW
        want = np.full((SIDE, SIDE), BACKGROUND_M)
        for target, side in painted:
            want[target] = np.minimum(want[target], DIGIT_M * 8 / side)
        np.testing.assert_allclose(depth, want, rtol=1e-6)
        assert len(painted) == 9 and {side for _, side in painted} <= {8, 9, 10, 11, 12}


@pytest.mark.parametrize("side", [8, 9, 11, 12])
def test_enlarging_is_pils(side):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    want = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), int)
    assert np.abs(digit_scenes._enlarged(image, side) - want).max() <= 1


def test_another_split():
    with pytest.raises(DataError, match="no split 'tset': did you mean 'test'"):
        scene("tset", 0)
