"""3-Augment and colour jitter against PIL, compiled as the loader compiles them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import stats

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.ops import catalog, three_augment
from vit_registers.data.ops.pixel_ops import compiled, draw
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

tf = pytest.importorskip("tensorflow")

TARGET = Target(224, 224, 3)
DRAWS = 10_000
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def noise(height=224, width=224):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["noise", "photos"])
def images(request):
    """Noise, also of only 0 and 255, or 20 photographs of 224 x 224."""
    if request.param == "noise":
        return [noise(), noise() // 128 * 255]
    paths = request.getfixturevalue("imagenet_paths")[:20]
    return [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]


@pytest.fixture(scope="module")
def jit():
    """jit(function): compiled once for all tests of this module."""
    done = {}
    return lambda f: done.setdefault(f, tf.function(f, jit_compile=True, autograph=False))


@pytest.fixture(scope="module")
def augment():
    """augment(image, draw_2), as in the loader."""
    run = compiled([three_augment.three_augment(TARGET)], TARGET)
    return lambda image, draw_2: run(tf.constant(image), [tf.constant(draw_2, tf.float32)]).numpy()


def difference(a, b):
    return abs(np.asarray(a).astype(int) - np.asarray(b))


def enhanced(image, factor_3, order):
    """The image changed by PIL, which takes factors in float32."""
    image = Image.fromarray(image)
    for which in order:
        image = ENHANCERS[which](image).enhance(float(factor_3[which]))
    return np.asarray(image)


def test_gray_is_exactly_pils(images, augment):
    for image in images:
        expected = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
        np.testing.assert_array_equal(augment(image, [0.2, 0.5]), expected)


def test_solarized_is_exactly_pils(images, augment):
    for image in images:
        expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
        np.testing.assert_array_equal(augment(image, [0.5, 0.5]), expected)


@pytest.mark.parametrize("draw_1", [0.0, 0.5])
def test_blurred_with_a_radius_between_limits(images, augment, draw_1):
    """The ends of the range of radii, with the blur as one branch of three."""
    for image in images:
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.1 + 1.9 * draw_1))
        np.testing.assert_array_equal(augment(image, [0.9, draw_1]), np.asarray(blurred))


@pytest.mark.parametrize("radius", [0.1, 0.44864053, 0.75, 1.0, 1.41, 1.42, 1.893863, 2.0])
def test_blur_is_exactly_pils(images, jit, radius):
    """Boxes reach further from a radius of sqrt(2) on; the long decimals require PIL's roundings."""
    blur = jit(three_augment.gaussian_blur)
    for image in images:
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
        np.testing.assert_array_equal(blur(image, tf.constant(radius)), expected)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 5)])
def test_blur_of_small_images(size):
    image = noise(*size)
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.9)))
    np.testing.assert_array_equal(three_augment.gaussian_blur(tf.constant(image), tf.constant(1.9)), expected)


@parametrize_quick("which", range(3))
def test_single_changes_are_exactly_pils(images, jit, which):
    """At random factors, as in training, and at short decimals, where factor * (level - flat level) is whole
    but for its rounding: were it rounded together with the sum that follows, a level would be lost."""
    jitter = jit(three_augment.jitter_pixels)
    rng = np.random.default_rng(which)
    order_3 = np.roll(np.arange(3, dtype=np.int32), -which)
    for factor in [*rng.uniform(0.7, 1.3, 3), 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3]:
        factor_3 = np.ones(3, np.float32)
        factor_3[which] = factor
        wrong = np.array(
            [difference(jitter(i, factor_3, order_3), enhanced(i, factor_3, [which])) for i in images]
        )
        assert wrong.max() == 0, factor


def test_the_whole_jitter_is_pils_in_every_order(images, jit):
    jitter = jit(three_augment.jitter_pixels)
    rng = np.random.default_rng(0)
    for order_3 in three_augment._ORDERS:
        for image in images:
            factor_3 = rng.uniform(0.7, 1.3, 3).astype(np.float32)
            wrong = difference(jitter(image, factor_3, order_3), enhanced(image, factor_3, order_3))
            assert wrong.max() == 0


def test_jitter_takes_the_limits_of_its_ranges():
    """max(0, 1 - x) for draws of 0, in all orders."""
    image = noise()
    op = three_augment.color_jitter(TARGET, 0.3, 2.0, 0.0)
    run = compiled([op], TARGET)
    for i, order in enumerate(three_augment._ORDERS):
        draws = [tf.constant([0.0, 0.0, 0.0, (i + 0.5) / 6])]
        expected = enhanced(image, np.float32([0.7, 0.0, 1.0]), order)
        np.testing.assert_array_equal(run(tf.constant(image), draws), expected)


def test_the_orders_are_the_six():
    assert len({tuple(order) for order in three_augment._ORDERS}) == 6
    assert (np.sort(three_augment._ORDERS, 1) == np.arange(3)).all()


def results(op, image, number=DRAWS):
    """The results of an operation for the draws of the seeds [0, 3], [1, 3], ..."""
    draws = tf.data.Dataset.range(number).map(lambda i: draw(op, tf.stack([i, 3])))
    draws_NxD = draws.batch(number).get_single_element()

    @tf.function(jit_compile=True, autograph=False)
    def run(draws_NxD):
        return tf.map_fn(
            lambda draw_D: op.apply(image, draw_D), draws_NxD, fn_output_signature=tf.as_dtype(image.dtype)
        )

    return run(draws_NxD).numpy()


@pytest.mark.slow
def test_the_three_are_equally_likely():
    image = np.full((1, 2, 3), [10, 130, 250], np.uint8)
    image[0, 1] = 40
    out = results(three_augment.three_augment(Target(1, 2, 3)), image)
    is_gray = (np.ptp(out, -1) == 0).all((1, 2))
    is_solarized = (out == np.asarray(ImageOps.solarize(Image.fromarray(image), 128))).all((1, 2, 3))
    assert not (is_gray & is_solarized).any()
    counts = [is_gray.sum(), is_solarized.sum(), (~is_gray & ~is_solarized).sum()]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_factors_are_uniform_and_the_orders_equally_likely(monkeypatch):
    monkeypatch.setattr(
        three_augment,
        "jitter_pixels",
        lambda image, factor_3, order_3: image + tf.concat([factor_3, tf.cast(order_3, tf.float32)], 0),
    )
    op = three_augment.color_jitter(TARGET, 0.3, 0.4, 1.5)
    out = results(op, np.zeros(6, np.float32))
    for factor_N, low, high in zip(out.T[:3], (0.7, 0.6, 0.0), (1.3, 1.4, 2.5), strict=True):
        assert factor_N.min() >= np.float32(low)
        assert factor_N.max() <= np.float32(high)
        assert stats.kstest(factor_N, "uniform", (low, high - low)).pvalue > 1e-3
    orders, counts = np.unique(out[:, 3:], axis=0, return_counts=True)
    assert len(orders) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_radii_are_uniform(monkeypatch):
    monkeypatch.setattr(three_augment, "gaussian_blur", lambda image, radius: image * 0 + radius)
    monkeypatch.setattr(three_augment, "solarize", lambda image, threshold: -image)
    monkeypatch.setattr(three_augment, "pil_gray", lambda image: -image)
    out = results(three_augment.three_augment(TARGET), np.ones(1, np.float32))[:, 0]
    radii = out[out > 0]
    assert radii.min() >= 0.1
    assert stats.kstest(radii, "uniform", (0.1, 1.9)).pvalue > 1e-3


@pytest.mark.slow
def test_in_a_chain():
    """Each of the three comes about, from a file."""
    image = noise(24, 24)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    text = "central_crop | three_augment"
    function = tf.function(catalog.compose(text, Target(24, 24, 3), where="x"))
    out = [function(tf.constant(file.getvalue()), tf.constant([s, 0], tf.int64)).numpy() for s in range(30)]
    gray = [np.array_equal(o, np.asarray(Image.fromarray(image).convert("L").convert("RGB"))) for o in out]
    solarized = [np.array_equal(o, np.asarray(ImageOps.solarize(Image.fromarray(image), 128))) for o in out]
    assert 3 < sum(gray) < 17
    assert 3 < sum(solarized) < 17
    assert 3 < 30 - sum(gray) - sum(solarized) < 17


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("three_augment", 1, "three_augment: the images have 1 channels: must be 3"),
        ("color_jitter(0.3, 0.3, 0.3)", 1, "color_jitter: the images have 1 channels: must be 3"),
        ("color_jitter(0.3, -0.1, 0.3)", 3, "color_jitter(0.3, -0.1, 0.3): must be finite numbers >= 0"),
        ("color_jitter(0.3)", 3, "color_jitter requires 'contrast'"),
    ],
)
def test_bad_settings(text, channels, message):
    with pytest.raises(ConfigError) as error:
        catalog.compose(text, Target(8, 8, channels), where="x")
    assert message in str(error.value)
