"""The linear task on digits: devices, batches, cached features, interruption, the choice of a classifier."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.fixtures.digits import make_config
from vit_registers.config import Data, LinearSettings, Model, Tasks
from vit_registers.errors import ConfigError
from vit_registers.evaluation.features import block_features
from vit_registers.evaluation.images import open_images
from vit_registers.evaluation.linear import task
from vit_registers.evaluation.linear.grid import init_heads
from vit_registers.evaluation.linear.host_features import FeatureBatch, evaluation_batches
from vit_registers.evaluation.linear.plan import Plan, make_plan
from vit_registers.evaluation.linear.training import LinearGrid, score_grid
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.models.params import init_params
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh

CONFIG = make_config()
SPLITS = Splits(("digits", "train"), ("digits", "test"))
SETTINGS = Tasks(linear=LinearSettings(num_steps=40, batch_size=256, learning_rates=(0.01, 0.1)))
pytestmark = pytest.mark.usefixtures("compiled_once")


class Killed(Exception):
    """The end of a process in the middle of a training."""


def _frozen(mesh=None, **data):
    mesh = make_mesh(CONFIG.mesh) if mesh is None else mesh
    params = jax.jit(lambda: init_params(CONFIG.model, key=jax.random.key(0)))()
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return FrozenModel("untrained", CONFIG.model, dataclasses.replace(CONFIG.data, **data), params, mesh)


def _measure(frozen, settings=SETTINGS, *, folder=None, say=lambda line: None):
    with jax.set_mesh(frozen.mesh):
        return task.LINEAR(frozen, settings, SPLITS, folder=folder, say=say)


def _assert_close(one, two):
    for name, value in one.values.items():
        assert two.values[name] == (pytest.approx(value, abs=2e-3) if isinstance(value, float) else value)
    losses = [[row[-1] for row in result.tables["classifiers"].rows] for result in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.fixture(scope="module")
def result():
    return _measure(_frozen())


def test_devices_and_batch_sizes_change_nothing(result):
    one_device = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    _assert_close(result, _measure(_frozen(one_device, eval_batch_size=200)))


def test_what_is_said(result):
    assert result.values["top1"] > 0.3 and result.values["classifiers"] == 4
    assert result.values["held_out"] == 144 and result.values["images"] == 359
    assert result.values["batch_size"] == 256 and result.values["train_ops"] == ""
    assert any("there are no classifiers of the last 4" in note for note in result.notes)
    rows = result.tables["classifiers"].rows
    assert max(row[3] for row in rows) == result.values["held_out_top1"]
    assert [row[2] for row in rows[:2]] == [0.01, 0.1]  # 256 images
    test = dataclasses.replace(SETTINGS, linear=dataclasses.replace(SETTINGS.linear, chosen_on="test"))
    other = _measure(_frozen(), test)
    assert other.values["top1"] == max(row[4] for row in other.tables["classifiers"].rows)
    assert any("chosen on the test images" in note for note in other.notes)
    assert "held_out_top1" not in other.values


def test_features_that_are_cached_are_those_of_each_step(result, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(task, "cached_sources", task.streamed_sources)
        _assert_close(result, _measure(_frozen()))


def test_a_training_that_was_killed_continues(result, tmp_path):
    def kill(line):
        if line.startswith("training") and int(line.split(": ")[1].split()[0]) >= 25:
            raise Killed

    with pytest.raises(Killed):
        _measure(_frozen(), folder=tmp_path, say=kill)
    assert (tmp_path / "classifiers.npz").exists()
    lines = []
    again = _measure(_frozen(), folder=tmp_path, say=lines.append)
    first = next(line for line in lines if line.startswith("training"))
    assert int(first.split(": ")[1].split()[0]) > 20
    assert again.values == result.values and again.tables == result.tables


def test_random_crops_learn_and_hold_out_the_same_images():
    ops = dataclasses.replace(SETTINGS.linear, train_ops="random_crop(padding=1)")
    found = _measure(_frozen(), dataclasses.replace(SETTINGS, linear=ops))
    assert found.values["top1"] > 0.15 and found.values["held_out"] == 144
    assert any("newly drawn" in note for note in found.notes)


def _plan(number=1_281_167, *, shards=8, model=Model(), data=Data(), **settings):  # noqa: B008
    linear = LinearSettings(**settings)
    return make_plan(linear, model, data, num_images=number, num_shards=shards, seed=0)


def test_the_rules_of_the_plan():
    imagenet = _plan()
    assert (imagenet.num_steps, imagenet.batch_size, imagenet.num_blocks) == (11_260, 1024, (1, 4))
    assert imagenet.learning_rates[-1] == pytest.approx(0.4) and not imagenet.is_cached
    assert imagenet.num_held_out == 128_117
    assert _plan(chosen_on="test").num_steps == 12_500
    small = _plan(1438, model=Model(image_size=(8, 8), patch_size=4, depth=2), data=Data(eval_ops=""))
    assert (small.num_steps, small.batch_size, small.num_blocks) == (1000, 1024, (1,))
    assert small.is_cached and small.train_ops == ""
    few = _plan(30, train_ops="resize | central_crop")
    assert few.batch_size == 24 and few.is_cached
    assert few.learning_rates[-1] == pytest.approx(0.1 * 24 / 256)
    with pytest.raises(ConfigError, match="draws random images, which"):
        _plan(data=Data(loader="pil"))
    for message, settings in (
        ("tasks.linear.chosen_on='best'", {"chosen_on": "best"}),
        ("does not divide over 8 devices", {"batch_size": 12}),
        ("the model has 12 blocks", {"num_blocks": (24,)}),
        ("each must have a value", {"learning_rates": ()}),
    ):
        with pytest.raises(ConfigError, match=message):
            _plan(**settings)


def test_only_the_classes_of_a_smaller_data_set_are_predicted():
    mesh = make_mesh(CONFIG.mesh)
    grid = LinearGrid(Plan(1, 8, "", (1,), (0.1,), 0), 4, False, 6, mesh)
    rng = np.random.default_rng(0)
    x_NxD, label_N = rng.standard_normal((8, 4)).astype(np.float32), np.array([1, 3] * 4)
    rows = FeatureBatch(x_NxD[:, None], x_NxD, label_N[:, None], np.ones(8, bool))
    with jax.set_mesh(mesh):
        heads = init_heads(jax.random.key(1), grid.widths(), num_rates=1, num_classes=6)
        (all_classes,) = score_grid(grid, heads, evaluation_batches(rows, 8, mesh)).values()
        (some,) = score_grid(grid, heads, evaluation_batches(rows, 16, mesh), [1, 3]).values()
    logit_NxY = x_NxD @ np.asarray(heads["last1"].kernel_RxDxY[0])
    assert some.top1_R[0] == np.mean(np.array([1, 3])[logit_NxY[:, [1, 3]].argmax(1)] == label_N)
    assert all_classes.top1_R[0] == np.mean(logit_NxY.argmax(1) == label_N)
    assert some.images == all_classes.images == 8 and some.non_finite_R[0] == 0


@pytest.mark.parametrize("use_cls", [True, False])
def test_features_are_those_of_intermediates(use_cls):
    """Against the model's own method; models without cls have the mean of the patches in its place."""

    model = dataclasses.replace(CONFIG.model, depth=2, use_cls=use_cls, pooling="gap", num_registers=2)
    vit = ViT(model, rngs=nnx.Rngs(0))
    split = open_images(_frozen(), SETTINGS, SPLITS).tests[""]
    batch = next(split.loader.eval_batches("test", jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    found = block_features(model, CONFIG.data, 2, None)(nnx.to_pure_dict(nnx.state(vit, nnx.Param)), batch)
    image = (batch.views["image"].astype(np.float32) / 255 - 0.5) / 0.5
    own = vit.intermediates(image, blocks=2, reshape=False)
    means = np.asarray(own.patches).mean(axis=2)
    want = np.asarray(own.prefix)[:, :, 0] if use_cls else means
    np.testing.assert_allclose(np.asarray(found["cls"]).swapaxes(0, 1), want, atol=1e-5)
    np.testing.assert_allclose(found["mean"], means[-1], atol=1e-5)
