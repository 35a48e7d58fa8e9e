"""The loader that keeps data on the accelerator."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.fixtures.digits import make_config as digits_config
from vit_registers.data.loaders import open_data
from vit_registers.data.ops.on_device import MEMORY_OPS
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources import digits
from vit_registers.errors import ConfigError


def shardings():
    devices = np.array(jax.devices())
    for shape, names, spec in (
        ((8,), ("data",), ("data",)),
        ((2, 4), ("data", "fsdp"), (("data", "fsdp"),)),
        ((4, 2), ("data", "tensor"), ("data",)),
    ):
        mesh = jax.sharding.Mesh(devices[:8].reshape(shape), names)
        yield jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_batches_do_not_depend_on_the_mesh(make_loader, device, small):
    loader = make_loader("memory_folder", train_ops="random_crop(2) | flip", batch_size=16, eval_batch_size=8)
    train = small.take(loader.train_batches(2, device), 3)
    evaluated = small.take(loader.eval_batches("test", device), None)
    for sharding in shardings():
        first = next(loader.train_batches(2, sharding))
        assert all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in jax.tree.leaves(first))
        small.assert_equal(train, small.take(loader.train_batches(2, sharding), 3))
        small.assert_equal(evaluated, small.take(loader.eval_batches("test", sharding), None))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
@pytest.mark.parametrize("kind", ["memory_folder", "folder"])
def test_batches_that_do_not_divide_over_devices(kind, make_loader):
    loader = make_loader(kind, batch_size=12, eval_batch_size=12)
    sharding = next(shardings())
    with pytest.raises(ConfigError, match=r"data.batch_size=12 does not divide over 8 devices"):
        loader.train_batches(0, sharding)
    with pytest.raises(ConfigError, match=r"data.eval_batch_size=12 does not divide over 8 devices"):
        loader.eval_batches("test", sharding)


def test_random_crop_shifts_and_fills_with_zeros():
    image = np.random.default_rng(0).integers(1, 256, (1, 6, 6, 1), dtype=np.uint8)
    padded = np.pad(image[0], [(2, 2), (2, 2), (0, 0)])
    parts = {padded[y : y + 6, x : x + 6].tobytes(): (y, x) for y in range(5) for x in range(5)}
    out = MEMORY_OPS["random_crop"](Target(6, 6, 1), 2)(np.repeat(image, 1000, 0), jax.random.key(0))
    counts = np.zeros((5, 5), int)
    for part in np.asarray(out):
        counts[parts[part.tobytes()]] += 1
    assert counts.min() > 15  # 40 expected each
    assert counts.max() < 70


def test_random_crop_mirrors_the_image_at_its_border_as_tensorflow_and_numpy_do():
    pytest.importorskip("tensorflow")
    from vit_registers.data.ops import crops

    target = Target(6, 6, 1)
    image = np.random.default_rng(0).integers(1, 256, (1, 6, 6, 1), dtype=np.uint8)
    padded = np.pad(image[0], [(3, 3), (3, 3), (0, 0)], mode="reflect")
    parts = {padded[y : y + 6, x : x + 6].tobytes() for y in range(7) for x in range(7)}
    out = MEMORY_OPS["random_crop"](target, 3, mode="reflect")(np.repeat(image, 500, 0), jax.random.key(0))
    assert {part.tobytes() for part in np.asarray(out)} == parts
    crop = crops.random_crop(target, 3, mode="reflect")
    seen = {crop({"image": image[0], "seed": [i, 0]})["image"].numpy().tobytes() for i in range(60)}
    assert len(seen) > 20 and seen <= parts
    for wrong, message in (
        ((6, "reflect"), "must be less than"),
        ((2, "mirror"), "known: reflect, zeros"),
    ):
        for op in (MEMORY_OPS["random_crop"], crops.random_crop):
            with pytest.raises(ConfigError, match=message):
                op(target, *wrong)


def test_larger_images_are_cropped_in_memory(make_loader, device, small):
    """Images of 8 x 8 with a target of 6 x 6: parts at random for training, the middle for evaluation."""
    loader = make_loader(
        "memory_array_record", image_size=(6, 6), train_ops="random_crop(0)", eval_ops="central_crop"
    )
    batch = small.take(loader.eval_batches("test", device), None)
    for i in range(small.NUM_TEST):
        np.testing.assert_array_equal(batch.views["image"][i, ..., 0], small.make_image(i)[1:7, 1:7])
    found = set()
    for image in small.take(loader.train_batches(0, device), 5).views["image"][..., 0]:
        parts = {
            small.make_image(i)[y : y + 6, x : x + 6].tobytes(): (y, x)
            for i in range(small.NUM_TRAIN)
            for y in range(3)
            for x in range(3)
        }
        found.add(parts[image.tobytes()])
    assert len(found) == 9
    message = "central_crop: its input images are 8 x 8, smaller than the target of 10 x 10: begin"
    with pytest.raises(ConfigError, match=message):
        loader = make_loader("memory_array_record", image_size=(10, 10), eval_ops="central_crop")
        small.take(loader.eval_batches("test", device), None)


def test_flip_happens_in_half_of_the_cases():
    image = np.random.default_rng(0).integers(0, 256, (400, 3, 4, 1), dtype=np.uint8)
    out = np.asarray(MEMORY_OPS["flip"](Target(3, 4, 1))(image, jax.random.key(0)))
    is_flipped = (out == image[:, :, ::-1]).all((1, 2, 3))
    assert (is_flipped | (out == image).all((1, 2, 3))).all()
    assert 150 < is_flipped.sum() < 250


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_ops": "flip"}, "data.eval_ops='flip': with data.loader='memory', it must be '', 'resize' or"),
        ({"eval_ops": "resize_small(256) | central_crop"}, "is unknown"),
        ({"train_ops": "flip | resize"}, "with data.loader='memory', resize must come first"),
        ({"train_ops": "inception_crop"}, "data.train_ops='inception_crop' is unknown"),
    ],
)
def test_bad_operations(settings, message, make_config):
    with pytest.raises(ConfigError) as error:
        open_data(make_config("memory_folder", **settings))
    assert message in str(error.value)


def test_digits_are_the_same_in_both_loaders(digits_tfds, device, small):
    both = []
    for loader in ("memory", "tfdata"):
        data = {"loader": loader, "data_dir": str(digits_tfds), "batch_size": 100, "eval_batch_size": 100}
        config = digits_config(data=data)
        opened = open_data(config)
        assert opened.num_classes == 10
        assert opened.class_names == tuple("0123456789")
        assert (opened.num_examples("train"), opened.num_examples("test")) == (1438, 359)
        both.append(
            (
                small.take(opened.train_batches(10, device), 8),
                small.take(opened.eval_batches("test", device), None),
            )
        )
    small.assert_equal(both[0][0], both[1][0])
    small.assert_equal(both[0][1], both[1][1])
    image_NxHxWxC, label_N = digits.load_split("test")
    np.testing.assert_array_equal(both[0][1].views["image"][:359], image_NxHxWxC)
    np.testing.assert_array_equal(both[0][1].targets["label"][:359], label_N)
    assert image_NxHxWxC.max() == 255


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits", "memory_folder", "memory_array_record"])
def test_no_tensorflow(kind, make_config):
    if kind == "digits":
        config = digits_config(data={"batch_size": 8, "train_ops": "flip"})
    else:
        config = make_config(kind, train_ops="flip", batch_size=8)
    program = f"""
import sys
import jax
from vit_registers.config import *
from vit_registers.data.loaders import open_data
loader = open_data({config!r})
device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
next(loader.train_batches(0, device))
next(loader.eval_batches("test", device))
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
print("done")
"""
    root = __file__.rsplit("/tests/", 1)[0]
    out = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert out.stdout == "done\n", out.stderr
