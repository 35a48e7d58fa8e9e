"""Resizing as PIL does, level for level, and torchvision's evaluation chain built of it."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.ops import catalog
from vit_registers.data.ops.resize import METHODS
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

tf = pytest.importorskip("tensorflow")

FILTERS = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}
SIZES = (  # from, to
    ((318, 318), (224, 224)),
    ((120, 150), (224, 224)),
    ((300, 224), (224, 224)),  # one side stays
    ((97, 131), (53, 161)),
)
EXTREMES = ((1, 1), (3, 2)), ((1030, 3), (2, 3)), ((111, 33), (31, 12))  # the last with a tie of roundings


@pytest.fixture(scope="module")
def resize():
    """resize(image_HxWxC, (height, width), method), with sizes that are not known when it is traced."""

    def trace(method, channels):
        shapes = tf.TensorSpec([None, None, channels], tf.uint8), tf.TensorSpec([2], tf.int32)
        return tf.function(METHODS[method]).get_concrete_function(*shapes)

    traced = {(method, channels): trace(method, channels) for method in FILTERS for channels in (1, 3)}

    def run(image_HxWxC, sides, method):
        return traced[method, image_HxWxC.shape[-1]](tf.constant(image_HxWxC), tf.constant(sides)).numpy()

    return run


@pytest.fixture(scope="module")
def photos(imagenet_paths):
    return [np.asarray(Image.open(path).convert("RGB")) for path in imagenet_paths[:20]]


def resized_by_pil(image_HxWxC, sides, method):
    """One axis at a time: since Pillow 13 it chooses which comes first, before it was the horizontal one."""
    image = Image.fromarray(image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC)
    image = image.resize((sides[1], image_HxWxC.shape[0]), FILTERS[method])
    return np.asarray(image.resize((sides[1], sides[0]), FILTERS[method])).reshape(*sides, -1)


def noise(*shape, contrast=1):
    """Random levels; with much contrast mostly 0 and 255, so that cubic weights overshoot."""
    levels = np.random.default_rng(0).normal(127.5, 60.0 * contrast, shape)
    return levels.clip(0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("method", FILTERS)
def test_noise_is_resized_exactly_as_by_pil(resize, method):
    for size, sides in [*SIZES, *EXTREMES]:
        for contrast in (1, 9):
            image = noise(*size, 3, contrast=contrast)
            np.testing.assert_array_equal(
                resize(image, sides, method), resized_by_pil(image, sides, method), f"{size} to {sides}"
            )


@parametrize_quick("method", FILTERS)
def test_photographs_are_resized_exactly_as_by_pil(resize, photos, method):
    for size, sides in SIZES:
        parts = [image[-size[0] :, -size[1] :] for image in photos]
        parts = [part for part in parts if part.shape[:2] == size]
        assert len(parts) > 10
        for part in parts:
            np.testing.assert_array_equal(resize(part, sides, method), resized_by_pil(part, sides, method))


def test_one_channel(resize):
    image = noise(41, 53, 1)
    np.testing.assert_array_equal(
        resize(image, (20, 70), "pil_bicubic"), resized_by_pil(image, (20, 70), "pil_bicubic")
    )


@pytest.mark.parametrize("method", FILTERS)
def test_the_same_size_changes_nothing(resize, method):
    image = noise(37, 64, 3, contrast=9)
    np.testing.assert_array_equal(resize(image, (37, 64), method), image)


@pytest.mark.slow
def test_bilinear_is_within_a_level_of_torch(resize):
    """What torchvision calls for 8-bit tensors with antialias=True."""
    torch = pytest.importorskip("torch")
    for size, sides in SIZES:
        image = noise(*size, 3)
        images_1xCxHxW = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(images_1xCxHxW, sides, mode="bilinear", antialias=True)
        difference = resize(image, sides, "pil_bilinear") - expected[0].permute(1, 2, 0).numpy().astype(int)
        assert abs(difference).max() <= 1


def run(text, image_HxWxC, target):
    file = io.BytesIO()
    Image.fromarray(image_HxWxC).save(file, "PNG")
    function = catalog.compose(text, Target(*target), where="x")
    return function(tf.constant(file.getvalue()), tf.constant([0, 0], tf.int64)).numpy()


@pytest.mark.parametrize("size", [(41, 30), (30, 41), (16, 45)])
def test_resize_small_truncates_the_longer_side_as_torchvision(size):
    short, long = sorted(size)
    expected = tuple(16 if side == short else int(16 * long / short) for side in size)
    image = noise(*size, 3)
    out = run("resize_small(16, 'pil_bilinear')", image, (1, 1, 3))
    np.testing.assert_array_equal(out, resized_by_pil(image, expected, "pil_bilinear"))
    if short == 16:
        np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("rest", range(7))
def test_central_crop_rounds_as_torchvision(rest):
    image = np.broadcast_to(np.arange(4 + rest, dtype=np.uint8)[:, None, None], (4 + rest, 5, 3))
    assert run("central_crop('half_even')", image, (4, 5, 3))[0, 0, 0] == round(rest / 2.0)
    assert run("central_crop", image, (4, 5, 3))[0, 0, 0] == rest // 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("central_crop('up')", "central_crop: rounding='up' is unknown"),
        ("resize('pil')", "method='pil' is unknown"),
        ("resize_small(8, 'lanczos')", "resize_small: method='lanczos' is unknown"),
    ],
)
def test_bad_settings(text, message):
    with pytest.raises(ConfigError) as error:
        catalog.compose(text, Target(8, 8, 3), where="x")
    assert message in str(error.value)


@pytest.mark.slow
def test_the_evaluation_chain_of_deit3_is_pils(imagenet_paths):
    """From the files: TensorFlow's decoder and PIL's agree on them, so the whole chain is exact."""
    text = "resize_small(224, method='pil_bicubic') | central_crop(rounding='half_even')"
    function = tf.function(catalog.compose(text, Target(224, 224, 3), where="x"))
    for path in imagenet_paths[:8]:
        image = np.asarray(Image.open(path).convert("RGB"))
        short, long = min(image.shape[:2]), max(image.shape[:2])
        sides = tuple(224 if side == short else int(224 * long / short) for side in image.shape[:2])
        image = resized_by_pil(image, sides, "pil_bicubic")
        top, left = (round((side - 224) / 2.0) for side in sides)
        out = function(tf.constant(path.read_bytes()), tf.constant([0, 0], tf.int64)).numpy()
        np.testing.assert_array_equal(out, image[top : top + 224, left : left + 224])
