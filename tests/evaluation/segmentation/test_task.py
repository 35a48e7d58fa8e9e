"""Segmentation from a frozen model to its tables, on a few digit scenes."""

import jax
import numpy as np
import pytest

from tests.fixtures.digits import CONFIG
from vit_registers.config import Mesh, Model, SegmentationSettings, Tasks
from vit_registers.data.sources import digit_scenes
from vit_registers.data.sources.dense import CLASSES, IGNORED
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.segmentation.inference import count_split
from vit_registers.evaluation.segmentation.protocol import Sizes
from vit_registers.evaluation.segmentation.task import SEGMENTATION
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.models.params import init_params
from vit_registers.runtime.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("few_scenes", "compiled_once")
SPLITS = Splits(("digit_scenes", "train"), ("digit_scenes", "test"))


@pytest.fixture
def few_scenes(monkeypatch):
    for split, number in (("train", 20), ("test", 7)):
        monkeypatch.setitem(digit_scenes.NUM_SCENES, split, number)


def measure(devices=1, splits=SPLITS, folder=None, model=CONFIG.model, say=lambda line: None, **settings):
    mesh = make_mesh(Mesh(), devices=jax.devices()[:devices])
    params = jax.jit(lambda: init_params(CONFIG.model, key=jax.random.key(1)))()
    backbone = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    frozen = FrozenModel("tiny", model, CONFIG.data, backbone, mesh)
    tasks = Tasks(segmentation=SegmentationSettings(**({"num_steps": 8, "batch_size": 8} | settings)))
    return SEGMENTATION(frozen, tasks, splits, folder=folder, say=say)


@pytest.mark.slow
def test_the_result_and_that_it_does_not_depend_on_devices_or_on_a_second_call(tmp_path):
    result = measure(folder=tmp_path)
    assert [row[0] for row in result.tables["rows"].rows] == ["tiny", "random backbone", "position only"]
    confusion = np.array([row[1:] for row in result.tables["confusion"].rows])
    assert confusion.shape == (11, 11) and confusion.sum() == 7 * 24 * 24
    values = result.values
    assert (values["divisor"], values["crop"], values["stride"], values["short_side"]) == ("all", 8, 8, 24)
    assert values["miou"] == pytest.approx(result.tables["rows"].rows[0][1])
    assert all(np.isfinite(x) for x in values.values() if not isinstance(x, str))
    assert result.pictures["predictions"].dtype == np.uint8
    assert sorted(x.name for x in tmp_path.iterdir()) == [
        "segmentation_model.npz",
        "segmentation_position_only.npz",
        "segmentation_random_backbone.npz",
    ]
    said = []
    again = measure(folder=tmp_path, say=said.append)
    assert again.values == values and not any("steps" in line for line in said)
    measure(folder=tmp_path, say=said.append, divisor="valid")
    assert sum("other settings" in line for line in said) == 3
    other = measure(devices=8)
    for name, value in values.items():
        if isinstance(value, float):
            assert other.values[name] == pytest.approx(value, abs=2e-3), name


def test_errors_come_before_anything_is_computed(tmp_path):
    def fails(error, message, **settings):
        with pytest.raises(error, match=message) as found:
            measure(**settings)
        assert "\n" not in str(found.value)

    train, test = SPLITS
    fails(DataError, "digit_scenes has no split 'val'", splits=Splits(train, ("digit_scenes", "val")))
    fails(
        DataError,
        r"digit_scenes has no split 'val'.*; --train_data=NAME:SPLIT says what to train on",
        splits=Splits(("digit_scenes", "val"), test),
    )
    fails(DataError, "there is no such folder", splits=Splits((str(tmp_path / "no"), "train"), test))
    fails(ConfigError, r"batch_size=6 does not divide over 4 devices", devices=4, batch_size=6)
    model = Model(channels=4, image_size=(8, 8), patch_size=4, width=16, depth=1, num_heads=2)
    fails(ConfigError, r"model.channels=4, and segmentation requires 1 or 3", model=model)


def test_an_image_with_logits_that_are_not_finite_is_wrong():
    def predict(window_BxHxWxC):
        logit = np.zeros((*window_BxHxWxC.shape[:3], 11), np.float32)
        logit[..., 0] = 1  # the background
        logit[4] = np.nan  # a window of the first scene
        return logit

    source, sizes = digit_scenes.DigitScenes(CLASSES), Sizes(short_side=24, crop=8, stride=8)
    found = count_split(
        predict,
        source,
        "test",
        range(source.num_examples("test")),
        sizes=sizes,
        channels=1,
        batch=63,
        kept=(0, 1),
        say=lambda line: None,
        what="x",
    )
    assert found.num_non_finite == 1 and found.count_YxY.sum() == 7 * 24 * 24
    assert (found.predictions[0] == IGNORED).all() and not found.predictions[1].any()
    right = sum(int((source.load("test", i, 1).label_HxW == 0).sum()) for i in range(1, 7))
    assert np.trace(found.count_YxY) == right


def test_train_and_test_must_have_the_same_classes(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / kind / split).mkdir(parents=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / kind / split / "a.png")
    with pytest.raises(ConfigError, match="has other classes than digit_scenes, 2 and 11"):
        measure(splits=Splits((str(tmp_path), "train"), SPLITS.test))
