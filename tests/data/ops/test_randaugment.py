"""RandAugment: each operation, compiled as the loader runs it, against PIL or its formula in numpy."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from tests.fixtures.quick import parametrize_quick
from vit_registers.data.ops import catalog, color, pixel_ops, randaugment
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError

tf = pytest.importorskip("tensorflow")

NAMES = list(randaugment.OPERATIONS)
MINUS, PLUS = 0.25, 0.75  # draws for signs
PLACE = 0.9
MOVED = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


@pytest.fixture(scope="module")
def compiled():
    """compiled(height, width, **settings) -> function of an image and the draws of one operation."""
    made = {}

    def make(height, width, **settings):
        key = height, width, *settings.items()
        if key not in made:
            target = Target(height, width, 3)
            op = randaugment.randaugment(target, 1, **settings)
            function = pixel_ops.compiled([op], target)
            made[key] = lambda image, draws: function(tf.constant(image), [tf.constant(draws)]).numpy()
        return made[key]

    return make


@pytest.fixture(scope="module")
def drawn():
    """Small images: noise, one level, two levels, dark noise, a slope."""
    noise = np.random.default_rng(0).integers(0, 256, (112, 136, 3), dtype=np.uint8)
    slope = np.arange(112 * 136 * 3).reshape(112, 136, 3) % 251
    images = [noise, np.full_like(noise, 77), noise % 2 * 90 + 10, noise // 5 + 20, slope]
    return [image.astype(np.uint8) for image in images]


@pytest.fixture(scope="module")
def photos(imagenet_paths):
    """20 photographs, the middle of each, 224 x 224 pixels."""
    images = []
    for path in imagenet_paths[:20]:
        with Image.open(path) as image:
            images.append(np.asarray(ImageOps.fit(image.convert("RGB"), (224, 224))))
    return images


def run(function, name, image, draw=PLUS):
    draws = [(NAMES.index(name) + 0.5) / len(NAMES), draw, PLACE]
    return function(image, np.array(draws, np.float32))


def blended(dull, image, factor):
    dull, image, factor = np.float32(dull), np.float32(image), np.float32(factor)
    return np.clip(dull + factor * (image - dull), 0, 255).astype(np.uint8)


def autocontrast(image):
    low, high = (np.float32(of(image, (0, 1))) for of in (np.min, np.max))
    scale = np.float32(255) / np.maximum(high - low, 1)
    stretched = np.clip(image.astype(np.float32) * scale - low * scale, 0, 255).astype(np.uint8)
    return np.where(high > low, stretched, image)


def sharpness(image):
    around = np.lib.stride_tricks.sliding_window_view(image.astype(int), (3, 3), (0, 1)).sum((-1, -2))
    smooth = image.copy()
    smooth[1:-1, 1:-1] = (around + 4 * image[1:-1, 1:-1].astype(int)) // 13
    return blended(smooth, image, 1.9)


def projected(image, matrix):
    """TensorFlow's own kernel, as tfa.image.transform calls it; 128 where a channel of ones comes out 0."""
    ones = np.ones_like(image[..., :1])
    out = tf.raw_ops.ImageProjectiveTransformV3(
        images=np.concatenate([image, ones], -1)[None],
        transforms=[[*matrix, 0.0, 0.0]],
        output_shape=image.shape[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0].numpy()
    return np.where(out[..., 3:] == 0, 128, out[..., :3])


def moved(name, image, sign):
    height, width, _ = image.shape
    if name == "rotate":
        angle = sign * np.pi / 6
        cos, sin = np.cos(angle), np.sin(angle)
        x, y = (width - 1) / 2, (height - 1) / 2  # the centre stays
        matrix = cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
    else:
        matrix = {
            "shear_x": (1, sign * 0.3, 0, 0, 1, 0),
            "shear_y": (1, 0, 0, sign * 0.3, 1, 0),
            "translate_x": (1, 0, sign * 100, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, sign * 100),
        }[name]
    return projected(image, matrix)


def cutout(image, draw):
    height, width, _ = image.shape
    y, x = int(draw * height), int(np.float32(PLACE) * width)
    image = image.copy()
    image[max(y - 40, 0) : y + 40, max(x - 40, 0) : x + 40] = 128
    return image


def by_pil(function):
    return lambda image: np.asarray(function(Image.fromarray(image)))


EXACT = {
    "autocontrast": autocontrast,
    "equalize": by_pil(ImageOps.equalize),
    "invert": by_pil(ImageOps.invert),
    "posterize": by_pil(lambda image: ImageOps.posterize(image, 4)),
    "solarize": by_pil(ImageOps.invert),  # the threshold 256 is 0 in 8 bits
    "color": lambda image: blended(tf.image.rgb_to_grayscale(image), image, 1.9),
    "contrast": lambda image: blended(min(image[..., 0].size // 256, 255), image, 1.9),
    "brightness": by_pil(lambda image: ImageEnhance.Brightness(image).enhance(1.9)),
    "sharpness": sharpness,
    "solarize_add": lambda image: np.where(image < 128, image + np.uint8(110), image),
}
CLOSE = {  # to PIL, by at most one level
    "autocontrast": by_pil(ImageOps.autocontrast),  # computed in float64
    "color": by_pil(lambda image: ImageEnhance.Color(image).enhance(1.9)),  # of another gray
    "sharpness": by_pil(lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),  # smooth is rounded
}


@parametrize_quick("source", ["drawn", "photos"])
@pytest.mark.parametrize("name", EXACT)
def test_operation_is_exact(name, source, compiled, request):
    for image in request.getfixturevalue(source):
        out = run(compiled(*image.shape[:2]), name, image)
        np.testing.assert_array_equal(out, EXACT[name](image))


@pytest.mark.parametrize("source", ["drawn", "photos"])
@pytest.mark.parametrize("name", CLOSE)
def test_operation_is_within_one_level_of_pil(name, source, compiled, request):
    num_far = size = 0
    for image in request.getfixturevalue(source):
        far = abs(run(compiled(*image.shape[:2]), name, image).astype(int) - CLOSE[name](image))
        assert far.max() <= 1
        num_far, size = num_far + np.count_nonzero(far), size + far.size
    print(f"{name}, {source}: {num_far} of {size} levels differ by one")


@pytest.mark.parametrize("source", ["drawn", "photos"])
@parametrize_quick("name", MOVED)
def test_pixels_are_moved_as_by_tensorflow(name, source, compiled, request):
    for image in request.getfixturevalue(source):
        for draw, sign in ((PLUS, 1), (MINUS, -1)):
            out = run(compiled(*image.shape[:2]), name, image, draw)
            np.testing.assert_array_equal(out, moved(name, image, sign))


@pytest.mark.parametrize("source", ["drawn", "photos"])
def test_cutout(source, compiled, request):
    for image in request.getfixturevalue(source):
        for draw in (0.0, 0.4, 0.999):
            out = run(compiled(*image.shape[:2]), "cutout", image, draw)
            np.testing.assert_array_equal(out, cutout(image, draw))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["drawn", "photos"])
def test_contrast_from_the_mean(source, compiled, request):
    for image in request.getfixturevalue(source):
        gray = np.floor(image.astype(float) @ [0.2989, 0.587, 0.114] + 1e-9)
        expected = np.clip(1.9 * image - 0.9 * gray.mean(), 0, 255).astype(np.uint8)
        out = run(compiled(*image.shape[:2], contrast="mean"), "contrast", image)
        far = abs(out.astype(int) - expected)
        assert far.max() <= 1  # torchvision's order of sums, and float32
        assert np.count_nonzero(far) <= 0.01 * far.size


@pytest.mark.parametrize("magnitude", [0, 5, 15, 20])
def test_other_magnitudes(magnitude, drawn):  # not compiled
    noise, draw_2 = tf.constant(drawn[0]), tf.constant([PLUS, PLACE])
    level = magnitude / 10
    by_name = {name: op(noise, level, draw_2).numpy() for name, op in randaugment.OPERATIONS.items()}
    bits = {0: 1, 5: 2, 15: 6, 20: 8}[magnitude]  # never 0
    np.testing.assert_array_equal(by_name["posterize"], drawn[0] >> (8 - bits) << (8 - bits))
    threshold = {0: 0, 5: 128, 15: 128, 20: 0}[magnitude]
    solarized = np.asarray(ImageOps.solarize(Image.fromarray(drawn[0]), threshold))
    np.testing.assert_array_equal(by_name["solarize"], solarized)
    np.testing.assert_array_equal(by_name["brightness"], blended(0, drawn[0], level * 1.8 + 0.1))
    pixels = int(level * 100)
    np.testing.assert_array_equal(by_name["translate_x"], projected(drawn[0], (1, 0, pixels, 0, 1, 0)))
    np.testing.assert_array_equal(by_name["shear_y"], projected(drawn[0], (1, 0, 0, level * 0.3, 1, 0)))
    added = np.where(drawn[0] < 128, np.minimum(drawn[0].astype(int) + int(level * 110), 255), drawn[0])
    np.testing.assert_array_equal(by_name["solarize_add"], added)


@pytest.mark.parametrize("factor", [0.1, 1.36, 1.72, 1.9, 2.44])
def test_blend_is_pils_for_all_levels(factor):
    first, second = (a.astype(np.uint8) for a in np.mgrid[:256, :256])
    expected = Image.blend(Image.fromarray(first), Image.fromarray(second), factor)
    out = tf.function(lambda a, b: color.blend(a, b, factor), jit_compile=True)(first, second)
    np.testing.assert_array_equal(out, expected)


def test_gray_is_tensorflows():
    colors = np.stack(np.mgrid[:256, :256:3, :256:5], -1).astype(np.uint8).reshape(256, -1, 3)
    out = tf.function(color.gray, jit_compile=True)(colors)
    np.testing.assert_array_equal(out, tf.image.rgb_to_grayscale(colors))


def test_operations_come_one_after_the_other(drawn):
    target = Target(112, 136, 3)
    both = tf.function(randaugment.randaugment(target, 2).apply, autograph=False)
    one = randaugment.randaugment(target, 1).apply
    for first, second in ((2, 12), (15, 9), (6, 6)):
        draw_6 = tf.constant([first / 16, PLUS, PLACE, second / 16, MINUS, PLACE])
        expected = one(one(tf.constant(drawn[0]), draw_6[:3]), draw_6[3:])
        np.testing.assert_array_equal(both(drawn[0], draw_6), expected)
    assert not np.array_equal(expected, drawn[0])


def test_operations_and_signs_are_drawn_evenly_and_independently():
    op = randaugment.randaugment(Target(224, 224, 3))
    seeds = tf.stack([tf.range(12_800, dtype=tf.int64), tf.fill([12_800], tf.constant(1, tf.int64))], 1)
    draws = tf.function(
        lambda: tf.map_fn(lambda seed: pixel_ops.draw(op, seed), seeds, fn_output_signature=tf.float32)
    )().numpy()
    draw_Mx2x3 = draws.reshape(-1, 2, 3)
    index_Mx2 = randaugment.operation_index(draw_Mx2x3).numpy()
    sign_Mx2 = randaugment.sign_index(draw_Mx2x3[..., 1:]).numpy()
    center_Mx2 = randaugment.cutout_center(draw_Mx2x3[:, 0, 1:], 224, 224).numpy()

    def check(what, counts):
        p = stats.chisquare(counts.ravel()).pvalue
        print(f"{what}: p = {p:.3f}")
        assert p > 1e-3, what

    check("pairs", np.bincount(index_Mx2 @ [16, 1], minlength=256))
    check("signs", np.bincount(sign_Mx2 @ [2, 1], minlength=4))
    check("first and its sign", np.bincount(index_Mx2[:, 0] * 2 + sign_Mx2[:, 0], minlength=32))
    check("second and its sign", np.bincount(index_Mx2[:, 1] * 2 + sign_Mx2[:, 1], minlength=32))
    check("center", np.bincount(center_Mx2 // 32 @ [7, 1], minlength=49))
    assert center_Mx2.min() == 0
    assert center_Mx2.max() == 223


def test_one_compilation_serves_all_images_and_draws():
    # what XLA needs as a constant is missing from the parameters, and is compiled again for each value
    op = randaugment.randaugment(Target(16, 16, 3))
    function = tf.function(op.apply, jit_compile=True, autograph=False)
    ir = function.experimental_get_compiler_ir(tf.zeros([16, 16, 3], tf.uint8), tf.zeros([6]))
    assert "{(u8[16,16,3]{2,1,0}, f32[6]{0})->" in ir(stage="hlo").splitlines()[0]


@pytest.mark.slow
def test_images_are_a_function_of_the_seed(drawn):
    images = np.stack(drawn * 8)
    text = "decode | central_crop | flip | randaugment(1)"
    chain = catalog.compose(text, Target(112, 136, 3), where="x")
    data = [tf.io.encode_png(image).numpy() for image in images]
    seeds = np.stack([np.arange(len(images)), np.zeros(len(images))], 1).astype(np.int64)
    dataset = tf.data.Dataset.from_tensor_slices((data, seeds)).map(chain, num_parallel_calls=2)
    once, again = (np.stack([*dataset.as_numpy_iterator()]) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert once.shape == images.shape
    changed = [not np.array_equal(a, b) for a, b in zip(once, images, strict=True)]
    assert sum(changed) > 30
    assert len({out.tobytes() for out in once[::5]}) > 4  # one image, eight seeds


@pytest.mark.parametrize(
    ("text", "channels", "message"),
    [
        ("randaugment", 1, "x: randaugment: the images have 1 channels: must be 3"),
        ("randaugment(0)", 3, "num_ops=0: must be >= 1"),
        ("randaugment(2, 21)", 3, "magnitude=21: must be 0 to 20"),
        ("randaugment(magnitude=-1)", 3, "magnitude=-1: must be 0 to 20"),
        ("randaugment(contrast='means')", 3, "did you mean 'mean'?"),
        ("randaugment(2.5)", 3, "must be int"),
    ],
)
def test_bad_settings(text, channels, message):
    with pytest.raises(ConfigError) as error:
        catalog.compose(text, Target(8, 8, channels), where="x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
