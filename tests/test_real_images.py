"""Real JPEGs through the folder path: loss falls, and evaluation sees every image once."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.as_users]

IMAGES = Path(__file__).parents[2] / "shared" / "data"
SMALL = (
    "--config.model.width=64",
    "--config.model.depth=2",
    "--config.model.num_heads=4",
    "--config.data.name=folder",
    "--config.data.batch_size=64",
    "--config.objective.classification.cutmix_alpha=0",
    "--config.objective.classification.mixup_alpha=0",
    "--config.optimizer.learning_rate=0.003",
    "--config.optimizer.warmup_epochs=None",
    "--config.optimizer.warmup_steps=20",
    "--config.run.total_epochs=None",
    "--config.run.total_steps=200",
    "--config.run.eval_every_epochs=None",
    "--config.run.log_every_steps=1",
    "--config.run.use_tensorboard=False",
)


def _archive(name):
    path = IMAGES / name
    if not path.exists():
        pytest.skip(f"{name} is not there: real images are tested only where they are")
    return zipfile.ZipFile(path)


def _train(run, root, work, *args):
    code, _, err = run("train", *args, *SMALL, f"--config.data.data_dir={root}", f"--workdir={work}")
    assert code == 0, err
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 200
    return np.array(losses)


def _evaluated(run, work):
    code, _, err = run("evaluate", f"--checkpoint={work}")
    assert code == 0, err
    return json.loads(next((work / "evaluation").iterdir()).read_text())


def test_cifar10_jpegs(run, tmp_path):
    """Every fifth image of each class."""
    archive = _archive("cifar10-jpeg.zip")
    archive.extractall(tmp_path / "images", archive.namelist()[::5])
    args = ("--config=configs/cifar10.py:registers=4", "--config.model.patch_size=4")
    losses = _train(run, tmp_path / "images", tmp_path / "run", *args)
    assert losses[-20:].mean() < losses[:20].mean() - 0.4
    result = _evaluated(run, tmp_path / "run")
    assert result["images"] == 2_000
    assert result["top1"] > 0.3


def test_imagenet_jpegs(run, tmp_path):
    """1,000 images of 1,000 classes, trained on and evaluated."""
    archive = _archive("imagenet-sample.zip")
    for name in archive.namelist():
        if name.endswith(".JPEG"):
            wnid = Path(name).name.split("_")[0]
            target = tmp_path / "images" / "train" / wnid / f"{Path(name).stem}.jpeg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    (tmp_path / "images" / "val").symlink_to(tmp_path / "images" / "train")
    args = (
        "--config=configs/imagenette.py:registers=4",
        "--config.model.num_classes=1000",
        "--config.model.image_size=(64,64)",
        "--config.data.eval_split=val",
        "--config.data.eval_ops=resize_small(72) | central_crop",
        "--config.model.drop_path=0.0",
    )
    losses = _train(run, tmp_path / "images", tmp_path / "run", *args)
    assert losses[-20:].mean() < losses[:20].mean() - 0.3
    assert _evaluated(run, tmp_path / "run")["images"] == 1_000
