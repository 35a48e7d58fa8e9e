"""Resizing without antialiasing against torch, and the distortion of colors."""

import numpy as np
import pytest
from PIL import Image

from vit_registers.evaluation.dense.images import distorted, resize_and_cut, resized, size_of_short_side


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_sizes():
    assert size_of_short_side((480, 640), 512) == (512, 683)  # 682.67
    assert size_of_short_side((640, 480), 512) == (683, 512)
    assert size_of_short_side((24, 24), 24) == (24, 24)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 9), (23, 31), (40, 20), (11, 13)])
def test_bilinear_is_torchs(size, channels):
    torch = pytest.importorskip("torch")
    image = noise((11, 13, channels))
    want = torch.nn.functional.interpolate(
        torch.tensor(image.transpose(2, 0, 1))[None].double(), size=size, mode="bilinear", align_corners=False
    )[0].numpy()
    found = resized(image, size)
    assert found.shape == (*size, channels) and found.dtype == np.uint8
    assert np.abs(found.transpose(2, 0, 1) - want).max() <= 1  # rounded to 8 bits
    labels = noise((11, 13), 1).astype(np.int32)
    near = torch.nn.functional.interpolate(
        torch.tensor(labels)[None, None].double(), size=size, mode="nearest-exact"
    )
    np.testing.assert_array_equal(resized(labels, size), near[0, 0].numpy())


def test_a_part_is_that_of_the_whole():
    image, labels = noise((17, 13, 3)), noise((17, 13), 1).astype(np.int32)
    for array, most in ((image, 1), (labels, 0)):
        whole = resized(array, (40, 33))
        part = resize_and_cut(array, (40, 33), (5, 8), (20, 21)).astype(int)
        assert np.abs(part - whole[5:25, 8:29]).max() <= most


def test_distortion():
    image = noise((6, 5, 3))
    seen = [distorted(image, np.random.default_rng(i)) for i in range(200)]
    assert sum((x == image).all() for x in seen) in range(1, 30)  # 1 of 16 with no change
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in seen)
    again = distorted(image, np.random.default_rng(3))
    np.testing.assert_array_equal(again, seen[3])
    grey = noise((6, 5, 1))
    assert distorted(grey, np.random.default_rng(0)).shape == grey.shape
    # the mean level changes by up to 32, then by up to half
    flat = np.full((4, 4, 3), 100, np.uint8)
    levels = [int(distorted(flat, np.random.default_rng(i)).mean()) for i in range(300)]
    assert min(levels) >= (100 - 32) * 0.5 - 1 and max(levels) <= (100 + 32) * 1.5 + 1
    assert min(levels) < 45 and max(levels) > 170


def test_hue_turns_the_circle(monkeypatch):
    """Red turned by 36 degrees either way is between magenta-red and orange."""

    class Fixed:
        def random(self, number):
            return np.array([1, 1, 1, 1, 0.0])  # hue only

        def uniform(self, low, high):
            return high

    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    found = distorted(red, Fixed())
    hue = np.asarray(Image.fromarray(found).convert("HSV"))[0, 0, 0].astype(float) * 360 / 256
    assert hue == pytest.approx(36, abs=2)
