"""The depth task: its result, devices, kills, batches, what the head reads, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.digits import make_config
from vit_registers.config import DepthSettings, Mesh, Tasks
from vit_registers.data.sources.digit_scenes import scene
from vit_registers.errors import ConfigError, DataError
from vit_registers.evaluation.dense import training
from vit_registers.evaluation.dense.baselines import position_features
from vit_registers.evaluation.depth.head import init_depth_head
from vit_registers.evaluation.depth.measure import make_predictor, measure
from vit_registers.evaluation.depth.protocol import depth_model_features, open_problem, training_examples
from vit_registers.evaluation.depth.task import DEPTH
from vit_registers.evaluation.pace import Pace
from vit_registers.evaluation.task import FrozenModel, Splits
from vit_registers.models.params import abstract_model, build_model, init_params
from vit_registers.runtime.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("compiled_once")

CONFIG = make_config(model={"num_registers": 2, "depth": 2})
SMALL = DepthSettings(
    num_steps=24,
    batch_size=8,
    learning_rate=0.02,
    num_bins=12,
    range_m=(1.0, 5.0),
    mean_steps=3,
    augment=False,
)
NUM_TRAIN, NUM_TEST = 17, 11


@functools.cache
def frozen(devices=1, config=CONFIG):
    mesh = make_mesh(Mesh(), devices=jax.devices()[:devices])
    backbone = jax.jit(lambda: init_params(config.model, key=jax.random.key(3)))()
    backbone = jax.device_put(backbone, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return FrozenModel("tiny", config.model, config.data, backbone, mesh)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes of digits as files."""
    root = tmp_path_factory.mktemp("scenes")
    for split, number in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        for kind in ("images", "depth"):
            (root / kind / split).mkdir(parents=True)
        for i in range(number):
            image_HxWx1, _, depth_HxW = scene(split, i)
            Image.fromarray(image_HxWx1[..., 0]).save(root / f"images/{split}/{i:02}.png")
            millimetres = np.rint(1000 * depth_HxW).astype(np.uint16)
            Image.fromarray(millimetres).save(root / f"depth/{split}/{i:02}.png")
    return root


def splits(folder, train="train", test="test"):
    return Splits((str(folder), train), (str(folder), test))


def run(folder, *, devices=1, settings=SMALL, config=CONFIG, saved=None, said=None, **names):
    say = (lambda line: None) if said is None else said.append
    where = splits(folder, **names)
    return DEPTH(frozen(devices, config), Tasks(depth=settings), where, folder=saved, say=say)


@pytest.fixture(scope="module")
def result(folder, compiled_once):
    return run(folder)


def test_result(result):
    values, table = result.values, result.tables["rows"]
    assert [row[0] for row in table.rows] == ["tiny", "random backbone", "position only"]
    for row in table.rows:
        found = dict(zip(table.columns, row, strict=True))
        numbers = [value for value in row[1:] if value is not None]
        assert np.isfinite(numbers).all() and found["rmse_se"] > 0
        assert 0 <= found["a1"] <= found["a2"] <= found["a3"] <= 1
        if row[0] != "tiny":
            assert found["rmse_minus_model"] == pytest.approx(found["rmse"] - table.rows[0][1])
    assert values["rmse"] == table.rows[0][1] and values["position_only_rmse"] == table.rows[2][1]
    assert (values["test_images"], values["train_images"], values["non_finite"]) == (NUM_TEST, NUM_TRAIN, 0)
    assert (values["eval_crop"], values["num_bins"]) == ("all", 12)
    picture = result.pictures["predictions"]
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 10
    assert any("standard error over images" in note for note in result.notes)


@pytest.mark.slow
def test_result_does_not_depend_on_the_devices(folder, result):
    for one, eight in zip(
        result.tables["rows"].rows, run(folder, devices=8).tables["rows"].rows, strict=True
    ):
        np.testing.assert_allclose(one[1:15], eight[1:15], atol=2e-3)


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_result(folder, result, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0)
    write, said = training.write_head, []

    def killed(saved, state):
        write(saved, state)
        if int(state.step) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_head", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, saved=tmp_path)
    monkeypatch.setattr(training, "write_head", write)
    resumed = run(folder, saved=tmp_path, said=said)
    assert "depth of tiny: continues at step 9" in said
    assert resumed.tables == result.tables and resumed.values == result.values
    assert {path.name for path in tmp_path.iterdir()} == {
        f"depth_{name}.npz" for name in ("model", "random_backbone", "position_only")
    }


def problem(folder, settings=SMALL, config=CONFIG, devices=1, **names):
    return open_problem(frozen(devices, config), Tasks(depth=settings), splits(folder, **names))


def test_features_are_patches_and_cls_before_the_final_norm(folder):
    """Those of ViT.intermediates; registers are not among them."""
    opened = problem(folder, dataclasses.replace(SMALL, num_blocks=2))
    model = opened.frozen.model
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 24, 20, 1), np.uint8))
    found = jax.jit(depth_model_features(opened, None))(
        opened.frozen.backbone, image, jnp.array([[24, 20]] * 2)
    )
    vit = build_model(abstract_model(model)[0], opened.frozen.backbone)
    tokens = jax.jit(lambda x: vit.intermediates(x, blocks=(0, 1), norm=False))((image / 255 - 0.5) / 0.5)
    for block in (0, 1):
        own = found[..., 32 * block : 32 * block + 32]
        np.testing.assert_allclose(own[..., :16], tokens.patches[block], atol=1e-5)
        cls = np.broadcast_to(tokens.prefix[block, :, 0][:, None, None], own[..., 16:].shape)
        np.testing.assert_allclose(own[..., 16:], cls, atol=1e-5)
    assert found.shape == (2, 6, 5, 64)


def test_positions_between_those_of_training():
    """NYU is trained on crops and tested on whole images, whose patch grids differ."""
    image, size = jnp.zeros((2, 8, 12, 1), jnp.uint8), jnp.array([[8, 12]] * 2)

    def places(grid):
        features = position_features(lambda _, x, size: x[:, ::2, ::2].astype(jnp.float32), {}, grid=grid)
        return jax.jit(features)({}, image, size)

    np.testing.assert_array_equal(places((4, 6))[1].reshape(24, 24), np.eye(24))
    between = places((2, 3))
    assert between.shape == (2, 4, 6, 6)
    np.testing.assert_allclose(between.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(between[0, 0, 0], [1, 0, 0, 0, 0, 0], atol=1e-6)


def test_predictions_are_those_of_the_mirror_image_mirrored(folder):
    opened = problem(folder)
    predict = make_predictor(opened, depth_model_features(opened, None))
    head = init_depth_head(jax.random.key(0), 32, 12)
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 1), np.uint8)
    one, other = (predict(opened.frozen.backbone, head, x) for x in (image, image[:, :, ::-1]))
    np.testing.assert_allclose(one, other[:, :, ::-1], atol=1e-5)
    assert 1 <= one.min() < one.max() <= 5


def test_errors_do_not_depend_on_batches_and_sizes_may_differ(folder):
    """Image by image, in batches that do not divide the split, and among images of two sizes."""

    def predict(image_BxHxWxC):
        return jnp.full(image_BxHxWxC.shape[:3], 3.0).at[:, 0, 0].set(image_BxHxWxC[:, 0, 0, 0] / 100)

    def errors(size):
        opened = problem(folder, dataclasses.replace(SMALL, batch_size=size))
        load = opened.test.source.load

        def cut(split, i, channels):
            pair = load(split, i, channels)
            return type(pair)(*(x[:16] for x in pair)) if i in (4, 5, 8) else pair

        opened.test.source.load = cut
        pace = Pace("x", NUM_TEST, lambda line: None, unit="images")
        return measure(opened, predict, range(NUM_TEST), kept=(5, 9), pace=pace)

    one, four = errors(1), errors(4)
    assert one.errors == four.errors and len(one.errors) == NUM_TEST
    assert {i: x.shape for i, x in four.predictions.items()} == {5: (16, 24), 9: (24, 24)}


def test_a_loss_that_is_not_finite_is_counted(folder):
    opened = problem(folder)
    pace = Pace("x", NUM_TEST, lambda line: None, unit="images")
    found = measure(opened, lambda x: jnp.full(x.shape[:3], jnp.nan), range(NUM_TEST), kept=(), pace=pace)
    assert found.num_non_finite == NUM_TEST
    assert all(np.isfinite(list(one.values())).all() for one in found.errors if one)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"range_m": (5.0, 1.0)}, ConfigError, r"range_m=\(5\.0, 1\.0\): the least depth must be below"),
        ({"eval_crop": "eigen"}, DataError, r"eval_crop='eigen' is for images of 480 x 640 pixels"),
        ({"eval_crop": "some"}, ConfigError, r"eval_crop='some'"),
        ({"num_blocks": 4}, ConfigError, r"num_blocks=4: the model has 2 blocks"),
        (
            {"crop": (25, 24)},
            DataError,
            r"24 x 24 pixels to train on, and tasks\.depth\.crop=25,24 is larger",
        ),
        ({"batch_size": 6}, ConfigError, r"tasks\.depth\.batch_size=6 does not divide over 8 devices"),
    ],
)
def test_settings_that_are_refused(folder, settings, error, said):
    with pytest.raises(error, match=said) as raised:
        run(folder, settings=dataclasses.replace(SMALL, **settings), devices=8)
    assert "\n" not in str(raised.value)


def test_data_that_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="no split 'validation'"):
        run(folder, train="validation")
    with pytest.raises(DataError, match="no split 'half'"):
        run(folder, test="half")
    for kind in ("images", "depth"):
        for i, (height, width) in enumerate(((24, 24), (24, 16))):
            (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
            depth = np.full((height, width), 2000, np.uint16)
            array = depth if kind == "depth" else depth.astype(np.uint8)
            Image.fromarray(array).save(tmp_path / f"{kind}/train/{i}.png")
    with pytest.raises(
        DataError, match=r"1\.png: 24 x 16 pixels, and the first image has 24 x 24: set tasks"
    ):
        run(tmp_path, test="train")
    examples = training_examples(problem(tmp_path, dataclasses.replace(SMALL, crop=(16, 12)), test="train"))
    assert examples.is_random and examples.make(1, np.random.default_rng(0)).size == (16, 12)
    Image.fromarray(np.zeros((24, 24), np.uint16)).save(tmp_path / "depth/train/0.png")
    with pytest.raises(DataError, match=r"0\.png: the depth of every pixel is 0"):
        run(tmp_path, test="train")


@pytest.mark.slow
def test_the_gradient_loss_is_a_setting(folder, result):
    other = run(folder, settings=dataclasses.replace(SMALL, gradient_weight=0.5)).values
    assert other["gradient_weight"] == 0.5 and 0.001 < abs(other["rmse"] - result.values["rmse"]) < 1


@pytest.mark.slow
def test_depths_out_of_the_range(folder):
    with pytest.raises(DataError, match="none of 11 images has a depth in the part and range"):
        run(folder, settings=dataclasses.replace(SMALL, range_m=(7.0, 8.0), num_steps=1))


@pytest.mark.slow
def test_digit_scenes_beat_the_position():
    where = Splits(("digit_scenes", "train"), ("digit_scenes", "test"))
    settings = Tasks(depth=DepthSettings(num_steps=200, num_bins=16))
    found = DEPTH(frozen(), settings, where, folder=None, say=lambda line: None).values
    assert found["position_only_rmse_minus_own"] > 10 * found["position_only_rmse_minus_own_se"]
