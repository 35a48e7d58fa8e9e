"""Evaluation without TensorFlow gives the pixels of the tf.data loader."""

import jax
import numpy as np
import pytest
from PIL import Image

from vit_registers.config import Data
from vit_registers.data.batch import IMAGE, LABEL
from vit_registers.data.loaders import LOADERS, loader_to_evaluate
from vit_registers.data.ops.strings import Target
from vit_registers.errors import ConfigError, DataError

TORCHVISION = "resize_small(24, 'pil_bicubic') | central_crop(rounding='half_even')"


@pytest.fixture
def photos(tmp_path):
    """A folder of images of different sizes, one of them grey."""
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(40, 31, 3), (24, 24, 3), (25, 61, 3), (33, 30), (16, 90, 3)]):
        (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / f"class{i % 2}/{i}.png")
    return tmp_path


def _batches(folder, loader, ops, channels=3):
    data = Data(
        name="images", data_dir=str(folder), loader=loader, eval_ops=ops, eval_batch_size=2, eval_split="all"
    )
    opened = LOADERS[loader](data, Target(17, 18, channels), 0, 1, None)
    return list(opened.eval_batches("all", jax.sharding.SingleDeviceSharding(jax.devices()[0])))


@pytest.mark.parametrize(
    ("ops", "channels"),
    [
        (TORCHVISION, 3),
        (TORCHVISION, 1),
        ("resize('pil_bilinear')", 3),
        ("resize", 3),
        ("resize_small(23) | central_crop", 3),
        ("resize_small(47, 'bilinear') | central_crop", 1),
    ],
)
def test_batches_are_those_of_tf_data(photos, ops, channels):
    pytest.importorskip("tensorflow")
    for own, theirs in zip(
        *(_batches(photos, name, ops, channels) for name in ("pil", "tfdata")), strict=True
    ):
        own, theirs = jax.device_get((own, theirs))
        np.testing.assert_array_equal(own.mask_B, theirs.mask_B)
        np.testing.assert_array_equal(own.targets[LABEL], theirs.targets[LABEL])
        np.testing.assert_array_equal(own.views[IMAGE], theirs.views[IMAGE])


def test_what_it_cannot_do_is_one_line(photos):
    with pytest.raises(
        ConfigError, match=r"data.eval_ops \(data.loader='pil'\)='flip' is unknown: known: central"
    ):
        _batches(photos, "pil", "flip")
    with pytest.raises(
        DataError, match=r"0\.png is 40 x 31 after data.eval_ops, instead of the required 17 x 18"
    ):
        _batches(photos, "pil", "")
    loader = LOADERS["pil"](Data(name="images", data_dir=str(photos)), Target(17, 18, 3), 0, 1, None)
    with pytest.raises(ConfigError, match=r"data\.loader='pil' only evaluates"):
        loader.train_batches(0, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_without_tensorflow_evaluation_takes_pil(monkeypatch, capsys):
    assert loader_to_evaluate(Data()) == Data()
    monkeypatch.setattr("vit_registers.data.loaders.missing_package", lambda *names: names[0])
    assert loader_to_evaluate(Data()).loader == "pil"
    assert "TensorFlow is not installed" in capsys.readouterr().err
    assert loader_to_evaluate(Data(loader="memory")).loader == "memory"
