"""The operations of the memory loader against PIL and torchvision's definitions: exact, or one level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_registers.data.ops import on_device_color as color
from vit_registers.data.ops import on_device_crops as crops
from vit_registers.data.ops.strings import Target


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:8, :12]).resize((96, 64), Image.Resampling.BICUBIC))
    noise[32:] = smooth[32:]
    noise[:4] = noise[:4, :, :1]  # gray
    noise[4, :6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]]
    return noise


def pil(image):
    return Image.fromarray(image)


def assert_levels(found, want, most=0, share=1.0):
    """Differences of at most `most` levels, in at most `share` of the values."""
    gap = np.abs(np.asarray(found).astype(int) - np.asarray(want).astype(int))
    assert gap.max() <= most, gap.max()
    assert (gap > 0).mean() <= share, (gap > 0).mean()


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.37])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color.brightness, ImageEnhance.Brightness),
        (color.contrast, ImageEnhance.Contrast),
        (color.saturation, ImageEnhance.Color),
    ],
)
def test_enhancements(image, ours, theirs, factor):
    assert_levels(jax.jit(ours)(image, factor), theirs(pil(image)).enhance(factor), most=1, share=2e-3)


def test_gray_solarize_and_grayscale(image):
    np.testing.assert_array_equal(color.gray_level(image)[..., 0], np.asarray(pil(image).convert("L")))
    np.testing.assert_array_equal(color.solarized(image), np.asarray(ImageOps.solarize(pil(image), 128)))
    np.testing.assert_array_equal(
        color.to_grayscale(image), np.asarray(pil(image).convert("L").convert("RGB"))
    )


def adjusted_hue(image, shift):
    """torchvision's adjust_hue of a PIL image."""
    h, s, v = (np.asarray(band) for band in pil(image).convert("HSV").split())
    h = (h.astype(int) + int(shift * 255)) % 256
    bands = [Image.fromarray(band.astype(np.uint8)) for band in (h, s, v)]
    return np.asarray(Image.merge("HSV", bands).convert("RGB"))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
def test_hue(image, shift):
    # PIL computes in float64: next to a whole number, a level of the hue differs, which moves colours more.
    found, want = np.asarray(jax.jit(color.hue)(image, shift)), adjusted_hue(image, shift)
    gap = np.abs(found.astype(int) - want)
    assert (gap > 0).mean() < 1e-2
    assert gap.max() <= 6


def test_all_hues_of_pil():
    """Every colour of 16 levels a channel."""
    level = np.arange(0, 256, 17, dtype=np.uint8)
    image = np.stack(np.meshgrid(level, level, level), axis=-1).reshape(64, 64, 3)
    found = np.asarray(color.hue(image, 0.1))
    gap = np.abs(found.astype(int) - adjusted_hue(image, 0.1))
    assert (gap > 0).mean() < 1e-2
    assert gap.max() <= 6


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_blur(image, sigma):
    scipy = pytest.importorskip("scipy.ndimage")
    weight = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    weight /= weight.sum()
    want = image.astype(np.float64)
    for axis in (0, 1):
        want = scipy.correlate1d(want, weight, axis=axis, mode="mirror")
    assert_levels(jax.jit(color.gaussian_blurred)(image, sigma), np.round(want), most=1, share=1e-3)
    if sigma == 0.1:
        np.testing.assert_array_equal(color.gaussian_blurred(image, sigma), image)


@pytest.mark.parametrize("kernel", crops.KERNELS)
@pytest.mark.parametrize("size", [(16, 16), (98, 98), (24, 40)])
@pytest.mark.parametrize("box", [(0, 0, 64, 96), (3, 10, 40, 31), (60, 90, 4, 6), (63, 0, 1, 96)])
def test_resized_parts(image, kernel, size, box):
    y, x, height, width = box
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    part = pil(image).crop((x, y, x + width, y + height))
    # Columns first; Pillow 13 begins with rows where the height shrinks more.
    want = part.resize((size[1], height), filters[kernel]).resize(size[::-1], filters[kernel])
    found = crops.resized_part(jnp.asarray(image), jnp.array(box), Target(*size, 3), kernel)
    assert_levels(found, want, most=1, share=5e-2)


@pytest.mark.parametrize(
    ("areas", "mean", "quantiles"),
    [((0.32, 1.0), 0.562, (0.342, 0.543, 0.854)), ((0.05, 0.32), 0.183, (0.064, 0.182, 0.305))],
)
def test_realised_areas(areas, mean, quantiles):
    """Of torchvision's sampler on an image of 500 x 375 px, 4,000 draws."""
    keys = jax.random.split(jax.random.key(0), 8000)
    draw = jax.jit(jax.vmap(lambda key: crops.random_box(key, 375, 500, areas, (3 / 4, 4 / 3))))
    box = np.asarray(draw(keys))
    assert (box[:, :2] >= 0).all()
    assert (box[:, 0] + box[:, 2] <= 375).all()
    assert (box[:, 1] + box[:, 3] <= 500).all()
    share = box[:, 2] * box[:, 3] / (375 * 500)
    np.testing.assert_allclose(share.mean(), mean, atol=0.008)
    np.testing.assert_allclose(np.quantile(share, (0.05, 0.5, 0.95)), quantiles, atol=0.015)


def test_jitter_of_gray_images_and_its_orders(image):
    strength = (0.4, 0.4, 0.2, 0.1)
    found = jax.vmap(lambda key: color.jittered(jnp.asarray(image), key, strength))(
        jax.random.split(jax.random.key(0), 8)
    )
    assert len({np.asarray(one).tobytes() for one in found}) == 8
    assert found.dtype == jnp.uint8
    same = color.jittered(jnp.asarray(image), jax.random.key(0), (0.0, 0.0, 0.0, 0.0))
    assert_levels(same, adjusted_hue(image, 0.0), most=6, share=5e-3)
    gray = jnp.asarray(image[..., :1])
    assert color.jittered(gray, jax.random.key(0), strength).shape == gray.shape
