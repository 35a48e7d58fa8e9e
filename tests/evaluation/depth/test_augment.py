"""Training images of depth: their size, and that image and depth are changed together."""

import dataclasses

import numpy as np
import pytest

from vit_registers.config import DepthSettings
from vit_registers.data.sources.dense import DensePair
from vit_registers.errors import DataError
from vit_registers.evaluation.depth.augment import rotate, training_pair

SETTINGS = DepthSettings(crop=(40, 56), augment=True)


def example(height=60, width=80, channels=3):
    """An image whose first channel is 20 times its depth."""
    y, x = np.mgrid[:height, :width]
    depth = 2 + 4 * (y / height) + 4 * (x / width) ** 2
    image = np.repeat(np.rint(20 * depth)[..., None], channels, axis=2).astype(np.uint8)
    return DensePair(image, depth.astype(np.float32))


def draw(seed, settings=SETTINGS, pair=None, protocol="folder"):
    rng = np.random.default_rng(seed)
    return training_pair(pair or example(), settings, protocol=protocol, rng=rng)


def test_pairs_are_functions_of_the_generator_and_differ():
    found = [draw(seed) for seed in range(40)]
    again = draw(7)
    assert (again.image_HxWxC == found[7].image_HxWxC).all() and (again.label_HxW == found[7].label_HxW).all()
    assert len({pair.image_HxWxC.tobytes() for pair in found}) == 40
    for image, depth in found:
        assert image.shape == (40, 56, 3) and depth.shape == (40, 56)
        assert image.dtype == np.uint8 and depth.dtype == np.float32
    falls = np.array([np.sign(depth[20, -3] - depth[20, 3]) for _, depth in found])
    assert 8 < (falls < 0).sum() < 32  # mirrored
    assert 8 < sum((depth == 0).any() for _, depth in found) + 8 < 40  # rotated, with corners outside


def test_image_and_depth_change_together():
    """In pictures whose colors are kept, depths are those of their pixels, but for rounding and rotation."""
    num_kept = 0
    for seed in range(30):
        image, depth = draw(seed)
        difference = image[..., 0].astype(float) - 20 * depth
        inside = difference[4:-4, 4:-4][depth[4:-4, 4:-4] > 0]
        num_kept += np.abs(inside).max() < 4
        if np.abs(inside).max() >= 4:  # recolored, which changes all pixels by nearly one function
            ranks = np.corrcoef(image[4:-4, 4:-4, 0].ravel(), depth[4:-4, 4:-4].ravel())[0, 1]
            assert ranks > 0.8
    assert 5 < num_kept < 25


def test_without_changes():
    """digit_scenes: the whole image. A crop without changes is a window of it."""
    pair, settings = example(), dataclasses.replace(SETTINGS, augment=False)
    pair = pair._replace(label_HxW=np.arange(60 * 80, dtype=np.float32).reshape(60, 80))
    same = draw(0, dataclasses.replace(settings, crop=None), pair)
    assert (same.image_HxWxC == pair.image_HxWxC).all() and (same.label_HxW == pair.label_HxW).all()
    corners = set()
    for seed in range(300):
        _, depth = draw(seed, settings, pair)
        top, left = divmod(int(depth[0, 0]), 80)
        assert (depth == pair.label_HxW[top : top + 40, left : left + 56]).all()
        corners.add((top, left))
    assert {0, 20} <= {top for top, _ in corners} and {0, 24} <= {left for _, left in corners}


def test_nyu_is_cut_to_its_box_first():
    y, x = np.mgrid[:480, :640]
    pair = DensePair(np.zeros((480, 640, 1), np.uint8), (1000 * y + x).astype(np.float32))
    settings = DepthSettings(crop=(427, 565), augment=False)
    depth = draw(0, settings, pair, "nyu").label_HxW
    assert depth[0, 0] == 45_043 and depth[-1, -1] == 471_607
    with pytest.raises(DataError, match=r"427 x 565 pixels to train on, and tasks\.depth\.crop=428,565"):
        draw(0, dataclasses.replace(settings, crop=(428, 565)), pair, "nyu")


def test_rotation_is_that_of_torchvision():
    torch = pytest.importorskip("torch")
    image, depth = example(31, 42)
    turned, turned_depth = rotate(image, depth, 2.5)
    angle = np.deg2rad(2.5)
    y, x = np.mgrid[:31, :42] - np.array([15.0, 20.5])[:, None, None]
    at_x, at_y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    grid = torch.tensor(np.stack([at_x / 21, at_y / 15.5], axis=-1))[None]
    own = torch.tensor(image.transpose(2, 0, 1).astype(np.float64))[None]
    want = torch.nn.functional.grid_sample(own, grid, mode="bilinear", align_corners=False)[0, 0].numpy()
    inside = np.s_[3:-3, 3:-3]
    assert np.abs(turned[..., 0].astype(float) - want)[inside].max() <= 1.01
    nearest = torch.nn.functional.grid_sample(
        torch.tensor(depth)[None, None].double(), grid, mode="nearest", align_corners=False
    )
    assert (np.abs(turned_depth - nearest[0, 0].numpy())[inside] < 1e-6).mean() > 0.99
    assert turned_depth[0, 0] == 0 or turned_depth[-1, 0] == 0
