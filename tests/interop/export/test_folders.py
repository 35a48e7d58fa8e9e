"""Exported folders are complete: card, preprocessing, class names; StableHLO runs without this package."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vit_registers
from tests.fixtures.quick import parametrize_quick
from vit_registers.checkpoint_names import CheckpointName
from vit_registers.config import Config, Data, Model
from vit_registers.conversion import open_input
from vit_registers.convert import convert_to
from vit_registers.interop.export.preprocessing_files import Preprocessing, timm_json, transformers_json
from vit_registers.interop.hints import Hints
from vit_registers.runs.checkpoint_folder import TrainedOn

NAMES = ("cat", "dog | wolf", "<script>", "ω")
MODEL = Model(
    width=32,
    depth=2,
    num_heads=2,
    mlp_dim=64,
    patch_size=8,
    image_size=(32, 32),
    num_classes=4,
    num_registers=2,
    has_cls_position=False,
    init="dinov2",
)
DATA = Data(
    name="folder",
    eval_split="val",
    eval_ops="resize_small(36, 'pil_bicubic') | central_crop(rounding='half_even')",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
)


@pytest.fixture
def export(untrained, tmp_path):
    """export(target, model={}, data={}) -> (the run folder, the folder that convert writes of it)."""

    def export(target, model=None, data=None):
        config = Config(
            model=dataclasses.replace(MODEL, **(model or {})), data=dataclasses.replace(DATA, **(data or {}))
        )
        number = config.model.num_classes
        names = TrainedOn(class_names=NAMES[:number], num_examples=1234)
        untrained(tmp_path / "run", config, data=names)
        source = open_input(CheckpointName(str(tmp_path / "run")), source="auto", hints=Hints(), params=None)
        output = tmp_path / "exported" / target
        output.parent.mkdir(exist_ok=True)
        convert_to(source, str(output), target, "float32")
        return tmp_path / "run", output

    return export


@pytest.fixture
def photo():
    y, x = np.mgrid[:52, :60]
    return Image.fromarray(np.stack([4 * x, 4 * y, 127 + 120 * np.sin(x * y / 99)], axis=-1).astype(np.uint8))


def _snippet(folder, title):
    """The code of the card below `title`."""
    card = (folder / "README.md").read_text()
    return re.search(rf"{re.escape(title)}:\n\n```python\n(.*?)\n```", card, re.DOTALL).group(1)


def _run_ours(folder, monkeypatch, photo):
    """The model and outputs of the card's own snippet, run beside the folder."""
    monkeypatch.chdir(folder.parent)
    photo.save("photo.png")
    scope = {}
    exec(_snippet(folder, "With vit_registers").replace("photo.jpg", "photo.png"), scope)
    return scope["model"], scope["outputs"]


TARGETS = {
    "transformers": {},
    "timm": {},
    "dinov2": {"num_classes": 0},
    "mup_vit": {"num_registers": 0},
}


@parametrize_quick("target", [*TARGETS])
def test_a_folder_has_card_preprocessing_and_classes_and_loads_again(target, export, monkeypatch, photo):
    run, folder = export(target, TARGETS[target])
    model, outputs = _run_ours(folder, monkeypatch, photo)
    ours = vit_registers.load(run)
    has_head = bool(ours.model.num_classes)
    assert model.class_names == (NAMES if has_head else None)
    theirs, own = model.config.data, ours.config.data
    for name in ("eval_ops", "loader", "mean", "std"):
        assert getattr(theirs, name) == getattr(own, name), name
    expected = ours(ours.preprocess(photo))
    np.testing.assert_allclose(outputs.patches, expected.patches, atol=1e-4)
    card = (folder / "README.md").read_text()
    for part in (f"# {target}", "step 1 |", "| val/top1 | 0.5000 |", "pil_bicubic"):
        assert part in card.replace("\\", ""), part
    assert "1,234 examples" in card and "<script>" not in card and "32 x 32 px" in card
    if has_head:
        assert "dog &#124; wolf" in card


def test_a_file_is_one_file(untrained, tmp_path):
    untrained(tmp_path / "run", Config(model=MODEL, data=DATA))
    source = open_input(CheckpointName(str(tmp_path / "run")), source="auto", hints=Hints(), params=None)
    convert_to(source, str(tmp_path / "out.safetensors"), "timm", "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "run"]


OPS = {
    "crop": "resize_small(36, 'pil_bicubic') | central_crop(rounding='half_even')",
    "whole": "resize('pil_bilinear')",
}


@parametrize_quick("ops", [*OPS.values()], ids=[*OPS])
def test_transformers_reads_its_processor_and_classes(ops, export, photo):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    run, folder = export("transformers", data={"eval_ops": ops})
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder)
    ours = vit_registers.load(run)
    pixels = processor(photo, return_tensors="np").pixel_values
    np.testing.assert_allclose(ours.preprocess(photo), pixels.transpose(0, 2, 3, 1), atol=1.01 / 255 / 0.2)
    assert theirs.config.id2label == dict(enumerate(NAMES)) and theirs.config.label2id["ω"] == 3
    with torch.no_grad():
        logits = theirs(torch.from_numpy(np.array(ours.preprocess(photo))).permute(0, 3, 1, 2)).logits
    np.testing.assert_allclose(ours(ours.preprocess(photo)).logits, logits, atol=1e-5)


TIMM = {
    "plain": {},
    "SwiGLU": {"mlp": "swiglu", "mlp_dim": 85, "layer_scale_init": 0.1},
    "CLIP": {"use_norm_pre": True, "norm_eps": 1e-5, "use_patch_bias": False},
}


@parametrize_quick("settings", [*TIMM.values()], ids=[*TIMM], number=0)
def test_timm_makes_the_model_of_the_folder(settings, export, timm, photo):
    import torch

    run, folder = export("timm", settings)
    theirs, ours = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), vit_registers.load(run)
    images = np.array(ours.preprocess(photo))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours(images).logits, logits, atol=1e-4)
    config = timm.data.resolve_data_config(pretrained_cfg=theirs.pretrained_cfg)
    assert config["input_size"] == (3, 32, 32) and config["interpolation"] == "bicubic"
    assert int(32 / config["crop_pct"]) == 36 and tuple(config["mean"]) == DATA.mean
    assert theirs.pretrained_cfg["label_names"] == list(NAMES)


def test_crop_shares_give_the_size_that_timm_computes():
    for size in range(32, 80):
        data = dataclasses.replace(DATA, eval_ops=f"resize_small({size}, 'pil_bicubic') | central_crop")
        assert int(32 / timm_json(Preprocessing(data, (32, 32)), 0)["crop_pct"]) == size


def test_the_card_for_timm_says_what_no_config_can_say(export):
    _, folder = export("timm", {"mlp": "swiglu", "mlp_dim": 85})
    assert "VisionTransformer(**{" in _snippet(folder, "With timm")
    card = (folder / "README.md").read_text().replace("\\", "")
    assert "timm also needs mlp_layer=timm.layers.SwiGLUPacked" in card


def test_methods_without_an_equal_are_said():
    area = dataclasses.replace(DATA, eval_ops="resize_small(36) | central_crop")
    made = Preprocessing(area, (32, 32))
    assert not made.is_exact_in("timm") and transformers_json(made, "dinov2")["resample"] == 2
    crop = Preprocessing(dataclasses.replace(DATA, eval_ops="central_crop"), (32, 32))
    assert crop.is_exact_in("transformers") and not transformers_json(crop, "dinov2")["do_resize"]


RUN = """
import sys
sys.modules["vit_registers"] = None  # it may be installed
try:
    import vit_registers
except ImportError:
    print("not importable")
import numpy
{code}
outputs = {{}}
for batch in (1, 3):
    images = numpy.load(f"images{{batch}}.npy")
    outputs |= {{f"{{name}}{{batch}}": value for name, value in model.call(images).items()}}
numpy.savez("outputs.npz", **outputs)
"""


@pytest.mark.slow
def test_stablehlo_runs_where_this_package_is_not(export, tmp_path):
    settings = {"summary_factor": 2, "mask": "fractal", "positions": "alibi2d", "use_scan": True}
    settings |= {"pooling": "cls_registers"}
    run, folder = export("stablehlo", settings, {"image_size": (32, 48), "eval_ops": "resize"})
    code = _snippet(folder, "With JAX (pip install jax flatbuffers)")
    assert len(code.splitlines()) == 6 and "vit_registers" not in code
    ours, images = vit_registers.load(run), {}
    for batch in (1, 3):
        images[batch] = np.random.default_rng(batch).normal(size=(batch, 32, 48, 3)).astype(np.float32)
        np.save(folder.parent / f"images{batch}.npy", images[batch])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", RUN.format(code=code)]
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "not importable", done.stderr
    written = np.load(folder.parent / "outputs.npz")
    for batch, x in images.items():
        expected = jax.jit(lambda model, x: model(x))(ours, x)
        for name in ("logits", "pooled", "cls", "registers", "summaries", "patches"):
            np.testing.assert_allclose(written[f"{name}{batch}"], getattr(expected, name), atol=1e-5)
    assert json.loads((folder / "class_names.json").read_text()) == list(NAMES)
    said = json.loads((folder / "preprocessing.json").read_text())
    assert said["mean"] == list(DATA.mean) and said["image_size"] == [32, 48] and said["eval_ops"] == "resize"
    card = (folder / "README.md").read_text()
    assert r"logits \[4\]" in card and "cpu, cuda, tpu" in card


def test_wrong_targets_are_refused(untrained, tmp_path, run_here):
    untrained(tmp_path / "run", Config(model=MODEL, data=DATA))
    common = (f"--input={tmp_path}/run", f"--output={tmp_path}/out")
    wrong = {
        ("--to=stablehlo", "--dtype=bfloat16"): "parameters of a stablehlo are float32",
        ("--to=stable",): "--to='stable' is unknown: did you mean 'stablehlo'",
        ("--to=stablehlo", f"--output={tmp_path}/run"): "is the input: give another --output",
    }
    for args, message in wrong.items():
        code, _, err = run_here("convert", *common, *args)
        assert code == 2 and len(err.strip().splitlines()) == 1 and message in err, err
    assert not (Path(tmp_path) / "out").exists()
