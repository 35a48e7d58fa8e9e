"""preprocess gives the pixels of the tf.data loader, for every resizing and kind of image."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Config, Data, Model
from vit_registers.data.batch import IMAGE, normalize
from vit_registers.data.eval_images import preprocess
from vit_registers.data.loaders import open_data
from vit_registers.data.ops.strings import Target
from vit_registers.errors import UserError

CASES = (
    ("resize_small(36, 'pil_bicubic') | central_crop(rounding='half_even')", 3),
    ("resize_small(36) | central_crop", 3),
    ("resize('pil_bilinear')", 1),
    ("resize_small(40, 'bilinear') | central_crop", 3),
    ("resize", 1),
)
MEAN = (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven images of odd sizes and kinds, smooth and noisy."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(37, 53), (90, 41), (32, 32), (120, 121), (33, 200)]):
        y, x = np.mgrid[:height, :width]
        wave = 127 + 120 * np.sin(x / (3 + i) + y)[..., None]
        noisy = np.clip(wave + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{i}.{'png' if i % 2 else 'jpg'}")
    Image.fromarray(noisy).convert("P").save(root / "5.png")
    Image.fromarray(noisy).convert("L").save(root / "6.jpg")
    return root


@parametrize_quick("ops, channels", CASES, number=0)
def test_preprocess_gives_the_pixels_that_tf_data_shows(ops, channels, photos):
    data = Data(name="images", data_dir=str(photos), eval_split="all", eval_batch_size=7, eval_ops=ops)
    data = dataclasses.replace(data, mean=MEAN[:channels], std=MEAN[:channels])
    config = Config(model=Model(image_size=(24, 32), patch_size=8, channels=channels), data=data)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batch = next(open_data(config).eval_batches("all", device))
    expected = normalize(batch.views[IMAGE], mean=data.mean, std=data.std)
    target, paths = Target(24, 32, channels), sorted(photos.iterdir())
    np.testing.assert_array_equal(preprocess([str(path) for path in paths], data, target), expected)
    opened = [Image.open(path) for path in paths if path.suffix == ".png"]
    expected = np.asarray(expected)[[1, 3, 5]]
    np.testing.assert_array_equal(preprocess(opened, data, target), expected)
    arrays = [np.asarray(image.convert("RGB")) for image in opened]
    np.testing.assert_array_equal(preprocess([arrays[0], arrays[1][None]], data, target), expected[:2])


class _Unreadable:
    def __array__(self, *_):
        raise RuntimeError("on another device")


@pytest.mark.parametrize(
    "image, message",
    [
        (Image.new("RGB", (0, 5)), "image 0 cannot be decoded as an image: it has no pixels"),
        ("a\0b.png", "cannot be read: .*null"),
        ("~no_such_user/a.png", "~no_such_user/a.png cannot be read: No such file"),
        (_Unreadable(), "image 0, of type _Unreadable, cannot be made an array of NumPy: on another"),
    ],
)
def test_images_that_cannot_be_read_are_one_line(image, message):
    with pytest.raises(UserError, match=message):
        preprocess(image, Data(eval_ops="resize('pil_bilinear')"), Target(8, 8, 3))
