"""torchvision's random resized crop: the law of its boxes, and what is made of them."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.ops import catalog
from vit_registers.data.ops.crops import random_resized_box, random_resized_crop
from vit_registers.data.ops.decode import decode
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

tf = pytest.importorskip("tensorflow")

AREAS, ASPECTS = (0.08, 1.0), (0.75, 1.3333333333333333)
DRAWS = 20_000


def boxes(size, number, areas=AREAS, aspects=ASPECTS):
    """y, x, height, width of boxes in an image of a size, for the seeds [0, 7], [1, 7], ..."""

    draws = tf.data.Dataset.range(number).map(
        lambda i: random_resized_box(tf.constant([*size, 3]), tf.stack([i, 7]), areas, aspects)
    )
    return draws.batch(number).get_single_element().numpy()


def box_of_torchvision(size, rng, areas=AREAS, aspects=ASPECTS):
    """RandomResizedCrop.get_params restated."""
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(*areas)
        aspect = math.exp(rng.uniform(math.log(aspects[0]), math.log(aspects[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, height - h, endpoint=True), rng.integers(0, width - w, endpoint=True), h, w
    w, h = width, height
    if width / height < aspects[0]:
        h = round(width / aspects[0])
    elif width / height > aspects[1]:
        w = round(height * aspects[1])
    return (height - h) // 2, (width - w) // 2, h, w


@parametrize_quick("size", [(375, 500), (800, 200)])
def test_boxes_have_the_law_of_torchvisions(size):
    rng = np.random.default_rng(0)
    expected = np.array([box_of_torchvision(size, rng) for _ in range(DRAWS)])
    drawn = boxes(size, DRAWS)
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, 2:] > 0).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= size).all()
    middle = [np.array(box_of_torchvision(size, rng, areas=(9, 9)))] * 2  # never fits
    share = [(box == middle[0]).all(1).mean() for box in (drawn, expected)]
    assert (share[1] > 0.02) == (size == (800, 200))
    assert abs(share[0] - share[1]) < 0.01
    measures = {
        "area": lambda y, x, h, w: h * w,
        "aspect": lambda y, x, h, w: w / h,
        "top": lambda y, x, h, w: y / (size[0] - h + 1),
        "left": lambda y, x, h, w: x / (size[1] - w + 1),
        "middle": lambda y, x, h, w: y + h / 2,
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(*drawn.T), measure(*expected.T)).pvalue > 1e-3, name


@pytest.mark.parametrize(
    ("size", "areas", "aspects"),
    [
        ((1, 100), AREAS, ASPECTS),
        ((100, 1), AREAS, ASPECTS),
        ((40, 90), (0.9, 0.9), (0.75, 1.25)),
        ((90, 91), (0.9, 1.0), (2.0, 2.0)),
    ],
)
def test_what_never_fits_is_the_middle(size, areas, aspects):
    expected = box_of_torchvision(size, np.random.default_rng(0), areas, aspects)
    np.testing.assert_array_equal(boxes(size, 50, areas, aspects), [expected] * 50)


def test_parts_are_resized_as_by_pil():
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    crop = random_resized_crop(Target(32, 48, 3))
    for i in range(3):
        seed = tf.constant([i, 0], tf.int64)
        y, x, h, w = random_resized_box(tf.constant(image.shape), seed, AREAS, ASPECTS).numpy()
        part = Image.fromarray(image[y : y + h, x : x + w])
        expected = part.resize((48, h), Image.Resampling.BICUBIC).resize((48, 32), Image.Resampling.BICUBIC)
        out = crop({"bytes": tf.constant(file.getvalue()), "seed": seed})["image"]
        np.testing.assert_array_equal(out, expected)


def test_only_the_part_of_a_jpeg_is_decoded(imagenet_paths, monkeypatch):
    target = Target(64, 64, 3)
    crop = random_resized_crop(target)
    data, seed = tf.constant(imagenet_paths[0].read_bytes()), tf.constant([3, 4], tf.int64)
    whole = crop(decode(target)({"bytes": data, "seed": seed}))["image"].numpy().astype(int)
    monkeypatch.setattr(tf.io, "decode_jpeg", None)
    part = crop({"bytes": data, "seed": seed})["image"].numpy()
    assert abs(part - whole).mean() < 1.0  # chroma at the border of the part is interpolated differently


@pytest.mark.slow
def test_recipe_b_is_a_function_of_the_seed(imagenet_paths):
    text = "random_resized_crop | flip | three_augment | color_jitter(0.3, 0.3, 0.3)"
    function = tf.function(catalog.compose(text, Target(64, 64, 3), where="x"))
    data = tf.constant(imagenet_paths[0].read_bytes())
    first, second, other = (function(data, tf.constant([s, 0], tf.int64)).numpy() for s in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_resized_crop(0.5, 0.2)", "random_resized_crop: area_min=0.5, area_max=0.2: must be 0 < min"),
        ("random_resized_crop(aspect_min=0)", "random_resized_crop: aspect_min=0.0"),
        ("random_resized_crop(method='cubic')", "method='cubic' is unknown"),
        ("random_resized_crop | decode", "decode must come first"),
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(ConfigError) as error:
        catalog.compose(text, Target(8, 8, 3), where="x")
    assert message in str(error.value)
