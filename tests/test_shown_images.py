"""What models are shown, as users give image sizes: the same of a run, of a converted one, of weights."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from vit_registers import loading
from vit_registers.analysis import opening
from vit_registers.config import Model
from vit_registers.data.batch import Batch
from vit_registers.errors import ConfigError
from vit_registers.interop.export import targets
from vit_registers.models.vit import ViT
from vit_registers.runtime.mesh import make_mesh
from vit_registers.training.sharding import batch_sharding

ROOT = Path(__file__).parents[1]
SIDE = 96  # px of the weights; their crop is 0.9 of the short side
MODEL = Model(
    width=192, depth=1, num_heads=3, mlp_dim=768, patch_size=16, image_size=(SIDE, SIDE), num_classes=2
)
OPS = "resize_small({}, 'pil_bicubic') | central_crop(rounding='half_even')"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """timm's names in a file without config.json, and a folder of photographs of two classes."""
    root = tmp_path_factory.mktemp("shown")
    params = nnx.to_pure_dict(nnx.state(ViT(MODEL, rngs=nnx.Rngs(0)), nnx.Param))
    targets.write(targets.export(MODEL, params, "timm"), str(root / "theirs.safetensors"), np.float32, None)
    rng = np.random.default_rng(0)
    for i in range(8):
        path = root / "data" / "val" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (170, 130 + 20 * i, 3), np.uint8)).save(path)
    return root


@pytest.fixture
def converted(place, run_here):
    """The run folder of the weights."""
    path = place / "run"
    if not path.exists():
        code, out, err = run_here("convert", f"--input={place / 'theirs.safetensors'}", f"--output={path}")
        assert code == 0, err
        assert "normalisation assumed for timm: mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5" in out
    return path


def _given(place, which):
    return str(place / ("run" if which == "run" else "theirs.safetensors"))


def _images(opened):
    mesh = make_mesh(opened.config.mesh)
    batch: Batch = next(iter(opened.loader.eval_batches("all", batch_sharding(mesh))))
    return np.asarray(batch.views["image"])


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["model.image_size", "data.image_size"])
@pytest.mark.parametrize("which", ["run", "weights"])
def test_the_part_that_is_shown_follows_the_image_size(place, converted, which, setting):
    """The pixels are PIL's at the smaller size, and positions are resampled."""
    data = str(place / "data")
    (opened,) = opening.open_all([_given(place, which)], data, {setting: (64, 64)}, num_images=2)
    assert opened.config.data.eval_ops == OPS.format(106 * 64 // SIDE)
    assert opened.layout.patch_grid == (4, 4)
    assert opened.model.model.image_size == (SIDE, SIDE)
    image = Image.open(place / "data" / "val" / "a" / "0.png")
    resized = image.resize((70, 70 * 170 // 130), Image.Resampling.BICUBIC)
    top = round((resized.height - 64) / 2)
    expected = np.asarray(resized.crop((3, top, 67, top + 64)), int)
    assert np.abs(_images(opened)[0] - expected).max() <= 1


@pytest.mark.parametrize("which", ["run", "weights"])
def test_settings_of_the_user_win(place, converted, which):
    given = {"model.image_size": (64, 64), "data.eval_ops": "resize", "model.dtype": "bfloat16"}
    (opened,) = opening.open_all([_given(place, which)], str(place / "data"), given, num_images=2)
    assert opened.config.data.eval_ops == "resize"
    assert opened.model.model.dtype == "bfloat16"
    for wrong in ({"model.depth": 3}, {"model.image_size": (64, 64), "data.image_size": (32, 32)}):
        with pytest.raises(ConfigError, match=r"keeps the settings of its training|differ: give one"):
            opening.open_all([_given(place, which)], str(place / "data"), wrong, num_images=2)


@pytest.mark.slow
def test_assumed_normalisation_is_said(place, converted, run_here):
    """By evaluate and analyze, unless mean and deviation are given; and kept by a second conversion."""
    line = "normalisation assumed for timm: mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5"
    data = (
        "--config.data.name=folder",
        f"--config.data.data_dir={place / 'data'}",
        "--config.data.eval_split=val",
    )
    evaluate = ("evaluate", f"--checkpoint={converted}", *data, "--config.data.image_size=(64, 64)")
    code, out, err = run_here(*evaluate)
    assert code == 0, err
    assert line in err
    assert np.isfinite(float(out.split("loss")[1].split()[0]))
    code, _, err = run_here(*evaluate, "--config.data.mean=(0.4, 0.4, 0.4)")
    assert code == 0 and "assumed" not in err
    assert loading.open_run(str(converted), 0).normalisation_origin == "assumed for timm"
    code, _, err = run_here("convert", f"--input={converted}", f"--output={place / 'again'}")
    assert code == 0, err
    assert loading.open_run(str(place / "again"), 0).normalisation_origin == "assumed for timm"


@pytest.mark.slow
def test_the_report_says_what_each_model_saw(place, converted, run_here):
    """Two models, one of which was converted for a smaller size with another way of resizing."""
    other = place / "other"
    code, _, err = run_here("convert", f"--input={converted}", f"--output={other}")
    assert code == 0, err
    args = [
        f"--checkpoint={converted}",
        f"--checkpoint={other}",
        f"--data={place / 'data'}",
        "--num_images=2",
    ]
    out = place / "report"
    code, _, err = run_here("analyze", "cost", *args, f"--out={out}")
    assert code == 0, err
    assert "run: sees 90.6 % of the short side (82.0 % of a square image), at 96 x 96 px, pil_bicubic" in err
    assert "warning" not in err

    opened = opening.open_all([str(converted), str(other)], str(place / "data"), {}, num_images=2)
    assert opening.differences(opened) is None


@pytest.mark.parametrize("which", ["run", "weights"])
@pytest.mark.parametrize("size", [64, 96])
def test_fine_tuning_evaluates_on_the_part_that_the_weights_were_shown(place, converted, which, size):
    card = runpy.run_path(str(ROOT / "configs" / "transfer.py"))
    config = card["get_config"](f"path={_given(place, which)},image={size}")
    assert config.data.eval_ops == OPS.format(106 * size // SIDE)


def test_models_that_are_not_shown_the_same_are_named(place, converted):
    first, second = (
        opening.open_all([str(converted)], str(place / "data"), given, num_images=2)[0]
        for given in ({}, {"data.eval_ops": "resize_small(96) | central_crop", "data.mean": (0.4, 0.4, 0.4)})
    )
    line = opening.differences([first, second])
    assert "differ in the part of an image, the method of resizing, the normalisation" in line
    assert "100.0 % of the short side" in line and "normalisation of the config: mean 0.4" in line
