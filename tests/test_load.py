"""vit_registers.load: names of checkpoints, what a loaded model knows, and its preprocessing."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_registers
from tests.fixtures.digits import make_config
from tests.fixtures.quick import parametrize_quick
from vit_registers.checkpoint_names import parse_checkpoint
from vit_registers.config import Config, Data, Model
from vit_registers.data.batch import IMAGE, normalize
from vit_registers.data.loaders import open_data
from vit_registers.errors import CheckpointError, ConfigError, DataError, UserError
from vit_registers.interop.export import targets
from vit_registers.models.params import init_params
from vit_registers.runs.checkpoint_folder import TrainedOn

ROOT = Path(__file__).parents[1]
NAMES = tuple("abcdefghij")
TINY = Model(width=32, depth=1, num_heads=2, mlp_dim=64, patch_size=8, image_size=(32, 32), num_classes=3)


@pytest.fixture(scope="module")
def device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture
def digits_run(untrained, tmp_path):
    """A run on digits with one checkpoint, of step 1."""
    data = TrainedOn(class_names=NAMES, num_examples=5)
    untrained(tmp_path / "run", make_config(model={"num_registers": 2}), data=data)
    return str(tmp_path / "run")


def _write(folder, model=TINY, data=None):
    params = init_params(model, key=jax.random.key(0))
    targets.write(targets.export(model, params, "transformers"), folder, np.dtype("float32"), data or Data())
    return str(folder)


def test_a_run_knows_its_config_classes_and_images(digits_run, device):
    model = vit_registers.load(f"{digits_run}@1")
    assert model.class_names == NAMES
    assert model.config.model.num_registers == 2 and model.config.data.name == "digits"
    shown = repr(model)
    assert shown == str(model) and len(shown.splitlines()) < 15 and max(map(len, shown.splitlines())) < 160
    for part in ("step 1", "2 registers", "4 patches (2 x 2)", "10 classes: 'a', 'b', 'c' and 7 more"):
        assert part in shown
    loader = open_data(model.config)
    batch = next(loader.eval_batches("test", device))
    image_BxHxWxC = np.asarray(batch.views[IMAGE])
    ours = model.preprocess(image_BxHxWxC)
    data = model.config.data
    np.testing.assert_array_equal(ours, normalize(batch.views[IMAGE], mean=data.mean, std=data.std))
    assert model(ours[:2]).logits.shape == (2, 10)
    assert isinstance(model, vit_registers.models.vit.ViT)
    assert nnx.jit(lambda model, x: model.attention(x).maps)(model, ours[:2]).shape == (2, 1, 2, 2)
    mapped = jax.tree.map(lambda x: 2 * x, model)
    assert mapped.class_names == NAMES


def test_integers_are_refused_with_the_name_of_preprocess(digits_run):
    model = vit_registers.load(digits_run)
    with pytest.raises(ConfigError, match="images are uint8: must be normalised floats; preprocess"):
        model(np.zeros((1, 8, 8, 1), np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven images of odd sizes and kinds in one class of a folder, smooth and noisy."""
    root = tmp_path_factory.mktemp("photos")
    (root / "all" / "one").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(37, 53), (90, 41), (32, 32), (120, 121), (33, 200)]):
        wave = 127 + 120 * np.sin(
            np.arange(width)[None, :, None] / (3 + i) + np.arange(height)[:, None, None]
        )
        noisy = np.clip(wave + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / "all" / "one" / f"{i}.{'png' if i % 2 else 'jpg'}")
    Image.fromarray(noisy).convert("P").save(root / "all" / "one" / "5.png")
    Image.fromarray(noisy).convert("L").save(root / "all" / "one" / "6.jpg")
    return root


WRONG = {
    "nowhere.png cannot be read": "nowhere.png",
    "image 0 is float32: must be uint8": np.zeros((8, 8, 1), np.float32),
    "of shape (8, 8)": np.zeros((8, 8), np.uint8),
    "of shape (8, 8, 4)": np.zeros((8, 8, 4), np.uint8),
    "of type int": 3,
    "there are no images": [],
    "image 1 is 9 x 8 after data.eval_ops": [np.zeros((8, 8, 1), np.uint8), np.zeros((9, 8, 1), np.uint8)],
    "image 0 cannot be decoded as an image: its pixels are floating-point": Image.new("F", (8, 8)),
}


def test_what_is_no_image_is_refused_in_one_line(digits_run, tmp_path):
    model = vit_registers.load(digits_run)
    for message, images in WRONG.items():
        with pytest.raises(UserError) as raised:
            model.preprocess(images)
        assert message in str(raised.value) and "\n" not in str(raised.value)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text.png cannot be decoded as an image: it is in none"):
        model.preprocess(tmp_path / "text.png")
    random = dataclasses.replace(model.about.config.data, eval_ops="flip")
    model.about = dataclasses.replace(model.about, config=dataclasses.replace(model.config, data=random))
    with pytest.raises(ConfigError, match=r"data\.eval_ops.*flip"):
        model.preprocess(np.zeros((8, 8, 1), np.uint8))


PROCESSORS = {
    "BitImageProcessor": {"size": {"shortest_edge": 44}, "crop_size": {"height": 32, "width": 32}},
    "ViTImageProcessor": {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3},
    "CLIPImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "DeiTImageProcessor": {
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "do_normalize": False,
    },
}


@parametrize_quick("name", [*PROCESSORS])
def test_preprocess_equals_the_image_processor_of_transformers(name, tmp_path, photos):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "hf"
    _write(folder)
    said = {"image_processor_type": name, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255}
    said |= {"do_resize": True, "do_center_crop": "crop_size" in PROCESSORS[name], "do_normalize": True}
    said |= {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.2, 0.3, 0.4]} | PROCESSORS[name]
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    assert (folder / "preprocessing.json").exists()  # which the edited file makes void
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = vit_registers.load(folder)
    images = [Image.open(photos / "all" / "one" / f"{i}.{'png' if i % 2 else 'jpg'}") for i in (2, 3)]
    images.append(images[0].resize((41, 50)))  # whose margins are odd, 43 or 53 minus 32
    theirs = np.stack([processor(image, return_tensors="np").pixel_values[0] for image in images])
    level = 1.01 / 255 / min(said["image_std"])  # PIL's passes may come in another order
    np.testing.assert_allclose(model.preprocess(images), theirs.transpose(0, 2, 3, 1), atol=level)


def test_names_and_steps_of_wrong_kinds_are_one_line(digits_run):
    for step in ("1", 1.0, True):
        with pytest.raises(ConfigError, match=r"step=.*: must be a whole number"):
            vit_registers.load(digits_run, step=step)
    with pytest.raises(CheckpointError, match="path=~no_such_user/run: there is no user of that name"):
        vit_registers.load("~no_such_user/run")


@parametrize_quick("settings", [{"crop_pct": 0.9}, {"crop_pct": 1.0, "crop_mode": "squash"}])
def test_preprocess_equals_the_transform_of_timm(settings, timm_transform, tmp_path, photos):
    config = {"input_size": [3, 32, 32], "interpolation": "bilinear", "mean": [0.4] * 3, "std": [0.2] * 3}
    config |= settings
    transform = timm_transform(config)
    folder = tmp_path / "timm"
    folder.mkdir()
    params = init_params(TINY, key=jax.random.key(0))
    file = folder / "model.safetensors"
    targets.write(targets.export(TINY, params, "timm"), file, np.dtype("float32"), Data())
    said = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": config}
    said["model_args"] = {"num_heads": 2, "img_size": 32}
    (folder / "config.json").write_text(json.dumps(said))
    model = vit_registers.load(folder)
    images = [Image.open(photos / "all" / "one" / f"{i}.png") for i in (1, 3)]
    theirs = np.stack([transform(image.convert("RGB")).numpy() for image in images])
    np.testing.assert_allclose(model.preprocess(images), theirs.transpose(0, 2, 3, 1), atol=1.01 / 255 / 0.2)


@pytest.fixture
def timm_transform():
    """timm_transform(pretrained_cfg) -> the transform that timm evaluates with; requires torchvision."""
    pytest.importorskip("torchvision")
    data = pytest.importorskip("timm.data")
    return lambda config: data.create_transform(**data.resolve_data_config(pretrained_cfg=config))


def test_class_names_of_other_files(tmp_path):
    folder = Path(_write(tmp_path / "hf"))
    assert vit_registers.load(folder).class_names is None  # LABEL_0, ...
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "cat", "1": "dog", "2": "<i>"}
    (folder / "config.json").write_text(json.dumps(config))
    assert vit_registers.load(folder).class_names == ("cat", "dog", "<i>")
    config["id2label"] = {"0": "cat", "1": "dog", "3": "cow"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="must be a name for each class"):
        vit_registers.load(folder)


def test_the_grammar_of_checkpoints(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert parse_checkpoint(f"{run}@20", where="x") == (str(run), 20, False)
    assert parse_checkpoint(f"{run}@20", 20, where="x") == (str(run), 20, False)
    assert parse_checkpoint(str(run), 7, where="x") == (str(run), 7, False)
    assert parse_checkpoint(f"{run}@all", where="x", is_all_allowed=True) == (str(run), None, True)
    assert parse_checkpoint("hf://a/b.c@v1", where="x") == ("hf://a/b.c@v1", None, False)
    assert parse_checkpoint("me@host/weights.pth", where="x") == ("me@host/weights.pth", None, False)
    (tmp_path / "odd@20").mkdir()
    assert parse_checkpoint(f"{tmp_path}/odd@20", where="x") == (f"{tmp_path}/odd@20", None, False)
    refused = {
        "@all is for analyze": (f"{run}@all", None),
        "with step 7: give one of them": (f"{run}@20", 7),
        "'best' is no step": (f"{run}@best", None),
        "'0020' is no step": (f"{run}@0020", None),
        "is no model on the Hub": ("hf://name", None),
        "a step is for run folders": ("hf://a/b", 3),
    }
    for message, (text, step) in refused.items():
        with pytest.raises(UserError, match=message):
            parse_checkpoint(text, step, where="x")


def test_all_commands_have_the_grammar(digits_run, run_here, tmp_path):
    code, out, err = run_here("evaluate", f"--checkpoint={digits_run}@1")
    assert code == 0 and "step        1" in out, err
    assert (Path(digits_run) / "evaluation" / "test-1.json").exists()
    code, out, err = run_here("convert", f"--input={digits_run}@1", "--dry-run", "--to=timm")
    assert code == 0 and "step 1" in out, err
    wrong = {
        ("evaluate", f"--checkpoint={digits_run}@2"): "has no checkpoint of step 2; it has 1",
        ("evaluate", f"--checkpoint={digits_run}@1", "--step=2"): "with step 2: give one of them",
        ("evaluate", "--checkpoint=hf://a/b"): "is not a run folder, so the images must be given",
        ("convert", f"--input={digits_run}@all", "--dry-run"): "@all is for analyze",
        (
            "analyze",
            "norms",
            f"--checkpoint={digits_run}@3",
            f"--out={tmp_path}/o",
        ): "no checkpoint of step 3",
    }
    for (program, *args), message in wrong.items():
        code, _, err = run_here(program, *args)
        assert code == 2 and len(err.strip().splitlines()) == 1 and message in err, err


def test_training_starts_from_a_step(digits_run):
    from vit_registers import fine_tuning

    settings = dataclasses.replace(Config().init_from, path=f"{digits_run}@1")
    model, data = fine_tuning.start_settings(settings)
    assert model.num_registers == 2 and data.name == "digits"
    taken = fine_tuning.start_leaves(settings, model)
    assert ("registers",) in taken
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        fine_tuning.start_settings(dataclasses.replace(settings, path=f"{digits_run}@5"))


HUB = """
import sys
import vit_registers
for name in sys.argv[1:]:
    try:
        model = vit_registers.load(name)
        print("loaded", model.model.num_registers, model.class_names)
    except vit_registers.errors.UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_models_of_the_hub_come_from_its_cache(tmp_path):
    pytest.importorskip("huggingface_hub")
    transformers = pytest.importorskip("transformers")
    repo = tmp_path / "cache" / "hub" / "models--org--tiny"
    snapshot, commit = repo / "snapshots" / ("0" * 40), "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        num_register_tokens=3, id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    transformers.Dinov2WithRegistersForImageClassification(config).save_pretrained(tmp_path / "made")
    (repo / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "made").iterdir():  # as the library stores them: links to blobs
        shutil.copy(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    own = {"HF_HUB_CACHE": str(tmp_path / "cache/hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    names = ("hf://org/tiny", f"hf://org/tiny@{commit}", "hf://org/other")
    command = [sys.executable, "-c", HUB, *names]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert [line for line in lines if line.startswith("loaded")] == ["loaded 3 ('cat', 'dog')"] * 2
    assert "hf://org/other is not in the cache" in lines[-1] and "HF_HUB_CACHE" in lines[-1]


def test_a_missing_library_of_the_hub_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"^hf://org/none requires huggingface_hub: pip install"):
        vit_registers.load("hf://org/none")
