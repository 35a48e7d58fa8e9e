"""The run card dino_cifar10 with a tiny model and made images of the size of CIFAR-10's, in memory."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import vit_registers
from vit_registers.train import train


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with train and test, each of two classes of 16 images of noise around a colour."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "test"):
        for label, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(16):
                pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.mark.slow
def test_a_run_in_memory_resumes_with_the_same_bits(images, tmp_path, compiled_once):
    config = vit_registers.recipe(
        "dino_cifar10:data=folder,width=32,depth=1,batch=16,steps=6",
        **{
            "data.data_dir": str(images),
            "data.eval_batch_size": 32,
            "objective.self_distillation.num_locals": 1,
            "objective.self_distillation.num_prototypes": 32,
            "objective.self_distillation.ibot_prototypes": 32,
            "objective.self_distillation.head_hidden": 32,
            "checkpoint.every_steps": 3,
            "run.eval_every_steps": 6,
            "run.log_every_steps": 1,
            "run.use_tensorboard": False,
        },
    )
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config, str(straight))
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "6")
    train(config, str(resumed))
    found, want = (
        [
            record
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if "train/loss" in (record := json.loads(line))
        ]
        for folder in (resumed, straight)
    )
    assert len(want) == 6 and found[-3:] == want[-3:]
    models = [vit_registers.load(str(folder)) for folder in (resumed, straight)]
    np.testing.assert_array_equal(*(model.registers[...] for model in models))
