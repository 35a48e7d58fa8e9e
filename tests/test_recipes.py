"""Both recipes from JPEGs to a checkpoint: 50 steps at 224 px with a small model, as a user starts them."""

import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_registers import recipes

pytestmark = [pytest.mark.slow, pytest.mark.as_users]

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample.zip"
NUM_IMAGES = 200  # of as many classes
SMALL = (
    "--config.model.width=64",
    "--config.model.depth=2",
    "--config.model.num_heads=4",
    "--config.data.eval_split=val",
    "--config.data.also_eval=()",
    "--config.data.eval_batch_size=20",
    f"--config.model.num_classes={NUM_IMAGES}",
    "--config.run.eval_every_steps=50",
    "--config.run.log_every_steps=1",
    "--config.run.use_tensorboard=False",
)
STEPS = (
    "--config.data.batch_size=16",
    "--config.optimizer.warmup_steps=10",
    "--config.run.total_epochs=None",
    "--config.run.total_steps=50",
)
EPOCHS = (  # the rate is by the epoch, which has 10 steps
    "--config.data.batch_size=20",
    "--config.objective.classification.mix_groups=5",
    "--config.optimizer.warmup_epochs=1",
    "--config.run.total_epochs=5",
    "--config.run.eval_every_epochs=None",
)
RECIPES = {
    "big_vision": ("configs/vit_s16_i1k.py:data=folder", *STEPS),
    "fractal": ("configs/fractal_table.py:data=folder,k=2,mask=fractal", *STEPS),
    "deit3": ("configs/registers_table.py:data=folder,registers=4", *EPOCHS),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """JPEGs, one of each class, as a folder with the splits train and val, which has every tenth of them."""
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE.name} is not there: real images are tested only where they are")
    root = tmp_path_factory.mktemp("imagenet")
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))[:NUM_IMAGES]
        for i, name in enumerate(names):
            for split in ("train", "val") if i % 10 == 0 else ("train",):
                target = root / split / Path(name).name.split("_")[0] / f"{Path(name).stem}.jpeg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_fifty_steps(name, images, run, tmp_path):
    config, *settings = RECIPES[name]
    work = tmp_path / "run"
    code, _, err = run(
        "train",
        f"--config={config}",
        *SMALL,
        *settings,
        f"--config.data.data_dir={images}",
        f"--workdir={work}",
    )
    assert code == 0, err
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    losses = np.array([line["train/loss"] for line in steps])
    assert [line["step"] for line in steps] == list(range(1, 51))
    assert np.isfinite(losses).all()
    rates = [line["train/learning_rate"] for line in steps]
    if name == "deit3":
        assert losses[0] > 0.6 and losses[-5:].mean() < losses[0] - 0.02
        assert len(set(rates)) == 4 and rates[0] == rates[19] == pytest.approx(1e-6)
    else:
        assert losses[0] == pytest.approx(np.log(NUM_IMAGES), rel=1e-5)  # the head starts at zero
        assert rates[0] == 0.0 and rates[10] == pytest.approx(1e-3)
    result = json.loads((work / "result.json").read_text())
    assert result["metrics"]["val/images"] == NUM_IMAGES // 10
    assert ("val_ema/top1" in result["metrics"]) == (name == "deit3")


def test_both_stages_of_recipe_c_and_the_part_of_train_that_is_held_out(run_here, tmp_path):
    """With a tiny model on noise: a folder without a validation split, then another one with it."""
    rng = np.random.default_rng(0)
    for split, name in itertools.product(("train", "val"), "ab"):
        folder = tmp_path / "images" / split / name
        folder.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    sizes = {
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "patch_size": 8,
        "mlp_dim": 16,
        "image_size": "(16, 16)",
    }
    settings = (
        *(f"--config.model.{name}={value}" for name, value in sizes.items()),
        f"--config.data.data_dir={tmp_path / 'images'}",
        "--config.data.train_ops=resize_small(16) | random_crop(4, mode='reflect') | flip",
        "--config.data.eval_ops=resize_small(16) | central_crop",
        "--config.data.batch_size=8",
        "--config.data.eval_batch_size=8",
        "--config.objective.classification.mix_groups=2",
        "--config.optimizer.warmup_epochs=0",
        "--config.run.total_epochs=1",
        "--config.run.use_tensorboard=False",
    )
    card, first, second = "deit3_b16_i21k:data=folder,registers=2,classes=2", tmp_path / "1", tmp_path / "2"
    code, _, err = run_here("train", f"--config={card}", f"--workdir={first}", *settings)
    assert code == 0, err
    metrics = json.loads((first / "result.json").read_text())["metrics"]
    assert metrics["train (held out: 0.002, seed 0)/images"] == 1  # of 40, at least one
    card += f",stage=1k,path={first}"
    more = (f"--workdir={second}", "--config.data.eval_split=val")
    code, out, err = run_here("train", f"--config={card}", *settings, *more)
    assert code == 0, err
    assert "initialised: head/bias, head/kernel" in out + err
    assert json.loads((second / "result.json").read_text())["metrics"]["val/images"] == 40


def test_both_variants_of_recipe_a_differ_in_settings_only():
    ours, theirs = recipes.recipe_a_big_vision(), recipes.recipe_a_fractal()
    assert ours.optimizer.weight_decay * ours.optimizer.learning_rate == pytest.approx(1e-4)
    assert ours.data.batch_size == theirs.data.batch_size == 1024
    assert ours.data.train_ops != theirs.data.train_ops
