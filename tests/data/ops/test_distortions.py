"""The operations of multi-crop in tf.data, compiled as the loader compiles them, against those in memory.

test_on_device.py compares these with PIL.
"""

import io

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vit_registers.config import SelfDistillationSettings
from vit_registers.data.batch import View
from vit_registers.data.ops import catalog, distortions, on_device_color
from vit_registers.data.ops.pixel_ops import PixelOp, compiled
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

TARGET = Target(40, 56, 3)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, TARGET, dtype=np.uint8)
    noise[20:] = np.asarray(Image.fromarray(noise[:6, :8]).resize((56, 20), Image.Resampling.BICUBIC))
    noise[:3] = noise[:3, :, :1]
    return noise


def run(function, image, *args):
    """The compiled operation `function` on the image."""
    op = PixelOp(1, lambda pixels, draw: function(pixels, *args))
    return compiled([op], Target(*image.shape))(tf.constant(image), [tf.zeros([1])]).numpy()


def assert_same(found, want, most, share):
    gap = np.abs(found.astype(int) - np.asarray(want).astype(int))
    assert gap.max() <= most, gap.max()
    assert (gap > 0).mean() <= share, (gap > 0).mean()


@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.07])
def test_hue(image, shift):
    assert_same(run(distortions.shift_hue, image, shift), on_device_color.hue(image, shift), 6, 5e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur(image, sigma):
    for pixels in (image, image[..., :1]):
        assert_same(
            run(distortions.blurred, pixels, sigma), on_device_color.gaussian_blurred(pixels, sigma), 1, 1e-3
        )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_jitter_in_each_order(image, order):
    factors = np.array([1.3, 0.7, 1.2, -0.06], np.float32)
    changes = (
        on_device_color.brightness,
        on_device_color.contrast,
        on_device_color.saturation,
        on_device_color.hue,
    )
    want = image
    for which in order:
        want = changes[which](want, factors[which])
    found = run(distortions._jittered, image, tf.constant(factors), tf.constant(order, tf.int32))
    assert_same(found, want, 10, 2e-2)


VIEWS = {
    "global_1": View(32, 32, SelfDistillationSettings().global_ops[0], "a"),
    "global_2": View(32, 32, SelfDistillationSettings().global_ops[1], "b"),
    "local_1": View(16, 16, SelfDistillationSettings().local_ops, "c"),
    "local_2": View(16, 16, SelfDistillationSettings().local_ops, "c"),
}


@pytest.fixture(scope="module")
def views():
    return tf.function(catalog.compose_views(VIEWS, 3))


def _png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.mark.slow
def test_views_are_a_function_of_the_seed(image, views):
    data = tf.constant(_png(image))
    first, again, other = (
        {name: value.numpy() for name, value in views(data, tf.constant([0, i], tf.int64)).items()}
        for i in (1, 1, 2)
    )
    assert {name: value.shape for name, value in first.items()} == {
        name: (view.height, view.width, 3) for name, view in VIEWS.items()
    }
    for name in VIEWS:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert (first["local_1"] != first["local_2"]).any()
    assert (first["global_1"] != first["global_2"]).any()


@pytest.mark.slow
def test_probabilities():
    """Of 400 draws; the standard error of a probability is 0.025 at most."""
    image = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    draws = tf.constant(np.random.default_rng(0).random((400, 2)), tf.float32)
    for make, changed in ((distortions.grayscale, 0.2), (distortions.random_solarize, 0.3)):
        op = make(Target(8, 8, 3), changed)
        found = [(op.apply(tf.constant(image), draw[:1]).numpy() != image).any() for draw in draws]
        np.testing.assert_allclose(np.mean(found), changed, atol=0.08)
    same = distortions.jitter(Target(8, 8, 3), 0.4, 0.4, 0.2, 0.1, p=0.0)
    np.testing.assert_array_equal(same.apply(tf.constant(image), tf.ones([6]) * 0.3), image)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resize | blur(1.5)", "blur: p=1.5: must be from 0 to 1"),
        ("resize | jitter(0.4, 0.4, 0.2, 0.6)", "the hue <= 0.5"),
        ("resize | blur(0.5, 2.0, 1.0)", "sigma_min=2.0, sigma_max=1.0"),
        ("resize | solarize(-0.1)", "solarize: p=-0.1"),
    ],
)
def test_arguments_that_are_refused(text, message):
    for build in (catalog.compose, _in_memory):
        with pytest.raises(ConfigError, match=f"x: .*{message}"):
            build(text, Target(16, 16, 3), where="x")


def _in_memory(text, target, where):
    from vit_registers.data.memory import _build

    return _build(text, target, where=where)


def test_several_views_are_decoded_once():
    with pytest.raises(ConfigError, match="several views are decoded once: leave out decode"):
        catalog.compose_views({"a": View(8, 8, "decode | resize", "a"), "b": View(8, 8, "resize", "b")}, 3)


@pytest.mark.slow
def test_jax_draws_in_every_order():
    orders = {tuple(order) for order in on_device_color._ORDERS}
    assert len(orders) == 24
    assert jax.random.randint(jax.random.key(0), (500,), 0, 24).max() == 23
