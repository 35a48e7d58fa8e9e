"""Operations of the tf.data loader against their definitions."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_registers.data.ops import catalog
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

tf = pytest.importorskip("tensorflow")


def encode(image_HxWxC, form="PNG"):
    out = io.BytesIO()
    if image_HxWxC.shape[-1] == 1:
        image_HxWxC = image_HxWxC[..., 0]
    Image.fromarray(image_HxWxC).save(out, form)
    return out.getvalue()


def run(text, image_HxWxC, *, target, seeds=(0,), form="PNG"):
    """Results of an operation string, one for each seed."""
    function = tf.function(catalog.compose(text, Target(*target), where="x"))
    data = tf.constant(encode(image_HxWxC, form))
    return [function(data, tf.constant([seed, 1], tf.int64)).numpy() for seed in seeds]


def noise(*shape):
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def coordinates(height, width):
    """An image whose red is its row and whose green is its column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, 0 * x], -1).astype(np.uint8)


def test_png_is_decoded_exactly():
    image = noise(5, 7, 3)
    np.testing.assert_array_equal(run("", image, target=(5, 7, 3))[0], image)
    np.testing.assert_array_equal(run("decode", image, target=(5, 7, 3))[0], image)


def test_channels_are_converted():
    grey = noise(5, 7, 1)
    np.testing.assert_array_equal(run("", grey, target=(5, 7, 3))[0], np.repeat(grey, 3, -1))
    assert run("", noise(5, 7, 3), target=(5, 7, 1))[0].shape == (5, 7, 1)
    assert run("inception_crop", noise(9, 9, 3), target=(4, 4, 1), form="JPEG")[0].shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("size", "expected"), [((30, 41), (16, 22)), ((41, 30), (22, 16)), ((8, 9), (16, 18))]
)
def test_resize_small(size, expected):
    out = run("resize_small(16)", noise(*size, 3), target=(1, 1, 3))[0]
    assert out.shape == (*expected, 3)


def test_resize_small_averages_areas():
    image = noise(8, 12, 3)
    out = run("resize_small(4)", image, target=(4, 6, 3))[0]
    mean = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    np.testing.assert_array_equal(out, mean.astype(np.uint8))  # truncated


def test_resize_is_bilinear_between_pixel_centres():
    out = run("resize", np.full((3, 5, 3), 77, np.uint8), target=(6, 4, 3))[0]
    np.testing.assert_array_equal(out, np.full((6, 4, 3), 77))
    ramp = np.array([[[0], [100]]], np.uint8)
    np.testing.assert_array_equal(run("resize", ramp, target=(1, 4, 1))[0].ravel(), [0, 25, 75, 100])


def test_central_crop_rounds_its_offset_down():
    out = run("central_crop", coordinates(9, 12), target=(4, 5, 3))[0]
    np.testing.assert_array_equal(out[..., 0], np.tile(np.arange(2, 6)[:, None], 5))
    np.testing.assert_array_equal(out[..., 1], np.tile(np.arange(3, 8), (4, 1)))


def test_flip_happens_in_half_of_the_cases():
    image = noise(3, 4, 3)
    results = run("flip", image, target=(3, 4, 3), seeds=range(400))
    flipped = [np.array_equal(out, image[:, ::-1]) for out in results]
    assert all(f or np.array_equal(out, image) for f, out in zip(flipped, results, strict=True))
    assert 150 < sum(flipped) < 250  # 5 standard deviations


def test_random_crop_shifts_and_fills_with_zeros():
    image = noise(6, 6, 1)
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    parts = {padded[y : y + 6, x : x + 6].tobytes(): (y, x) for y in range(5) for x in range(5)}
    results = run("random_crop(2)", image, target=(6, 6, 1), seeds=range(500))
    counts = np.zeros((5, 5), int)
    for out in results:
        counts[parts[out.tobytes()]] += 1
    assert counts.min() > 2  # 20 expected each
    assert counts.max() < 45


def test_seeds_depend_on_the_place_in_the_string():
    image = noise(6, 6, 1)
    once = run("random_crop(2)", image, target=(6, 6, 1), seeds=range(20))
    later = run("flip | random_crop(2)", image[:, ::-1], target=(6, 6, 1), seeds=range(20))
    assert not all(np.array_equal(a, b[:, ::-1]) for a, b in zip(once, later, strict=True))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_inception_crop_takes_parts_of_the_area_asked_for(form, monkeypatch):
    boxes = []
    sample = tf.image.stateless_sample_distorted_bounding_box
    monkeypatch.setattr(
        tf.image,
        "stateless_sample_distorted_bounding_box",
        lambda *args, **kwargs: (lambda out: (boxes.append(out[1]), out)[1])(sample(*args, **kwargs)),
    )
    image = np.zeros((100, 150, 3), np.uint8)
    function = catalog.compose(
        "inception_crop(0.2, 0.7)", Target(8, 8, 3), where="x"
    )  # not traced: values are seen
    data = tf.constant(encode(image, form))
    for seed in range(200):
        assert function(data, tf.constant([seed, 0], tf.int64)).shape == (8, 8, 3)
    height, width = np.array([box.numpy()[:2] for box in boxes]).T
    area, aspect = height * width / image[..., 0].size, width / height
    assert area.min() > 0.19
    assert area.max() < 0.71
    assert 0.4 < area.mean() < 0.5  # 0.45 if all areas are equally likely; those near 0.7 fit less often
    assert aspect.min() > 0.73
    assert aspect.max() < 1.36


def test_inception_crop_of_the_whole_image_is_a_resize():
    image = noise(20, 20, 3)
    whole = run("inception_crop(area_min=1., aspect_min=1., aspect_max=1.)", image, target=(8, 8, 3))[0]
    np.testing.assert_array_equal(whole, run("resize", image, target=(8, 8, 3))[0])
    # nothing fits: the whole image is taken
    long = noise(4, 40, 3)
    taken = run("inception_crop(area_min=0.9)", long, target=(4, 40, 3))[0]
    np.testing.assert_array_equal(taken, long)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip | decode", "decode must come first"),
        ("inception_crop(0.5, 0.2)", "must be 0 < min <= max <= 1"),
        ("inception_crop(aspect_min=2)", "must be 0 < min <= max"),
        ("random_crop(-1)", "padding=-1: must be >= 0"),
        ("resize_small(0)", "size=0: must be >= 1"),
        ("flop", "x='flop' is unknown: did you mean 'flip'?"),
    ],
)
def test_bad_operations(text, message):
    with pytest.raises(ConfigError) as error:
        catalog.compose(text, Target(8, 8, 3), where="x")
    assert message in str(error.value)


def test_real_jpegs_are_decoded_as_by_pil(imagenet_paths):
    for path in imagenet_paths:
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        decoded = catalog.decode(Target(1, 1, 3))({"bytes": tf.constant(path.read_bytes())})["image"].numpy()
        assert decoded.shape == expected.shape
        assert abs(decoded - expected).max() <= 3
        assert abs(decoded - expected).mean() < 0.2


def test_the_fused_crop_is_the_crop_of_the_decoded_image(imagenet_paths):
    target = Target(64, 64, 3)
    fused = catalog.compose("inception_crop", target, where="x")
    apart = catalog.compose("decode | inception_crop", target, where="x")
    data = imagenet_paths[0].read_bytes()
    # the place in the string is part of the seed, so the operation is called by hand
    seed = tf.constant([3, 4], tf.int64)
    crop = catalog.inception_crop(target)
    a = crop({"bytes": tf.constant(data), "seed": seed})["image"].numpy().astype(int)
    b = crop(catalog.decode(target)({"bytes": tf.constant(data), "seed": seed}))["image"].numpy().astype(int)
    assert abs(a - b).mean() < 1.0  # chroma at the border of the crop is interpolated differently
    assert fused(tf.constant(data), seed).shape == apart(tf.constant(data), seed).shape == (64, 64, 3)


def test_half_a_jpeg_is_an_error(imagenet_paths):
    data = imagenet_paths[0].read_bytes()
    with pytest.raises(tf.errors.InvalidArgumentError):
        catalog.decode(Target(1, 1, 3))({"bytes": tf.constant(data[: len(data) // 2])})


def test_imagenet_evaluation_images(imagenet_paths):
    function = tf.function(
        catalog.compose("resize_small(256) | central_crop", Target(224, 224, 3), where="x")
    )
    for path in imagenet_paths[:4]:
        assert function(tf.constant(path.read_bytes()), tf.constant([0, 0], tf.int64)).shape == (224, 224, 3)
