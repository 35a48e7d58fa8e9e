"""Run cards of CLIP and SigLIP at ViT-B/16: settings of the recipes, and small runs on a folder of tars."""

import io
import json
import tarfile

import jax
import numpy as np
import pytest
from PIL import Image

import vit_registers
from vit_registers.config import flatten, from_mapping, to_dict
from vit_registers.config.cards import card_paths, load_module
from vit_registers.models.params import count_parameters
from vit_registers.objectives.catalog import make_objective
from vit_registers.train import train

SHARED = {
    "data.batch_size": 32_768,
    "model.variant": "B",
    "model.patch_size": 16,
    "model.image_size": (224, 224),
    "model.dtype": "bfloat16",
    "text.dtype": "bfloat16",
    "mesh.data": -1,
    "data.name": "image_text",
}
# Of OpenCLIP's code, for its ViT-B-16, and of SigLIP (arXiv:2303.15343) and big_vision's two_towers.
RECIPES = {
    "openclip_b16": SHARED
    | {
        "model.use_norm_pre": True,
        "model.use_norm_after_pool": True,
        "model.use_patch_bias": False,
        "model.norm_eps": 1e-5,
        "model.activation": "gelu",
        "model.pooling": "cls",
        "text.variant": "M",
        "text.vocab_size": 49_408,
        "text.context": 77,
        "text.is_causal": True,
        "text.pool": "end",
        "text.embed_dim": 512,
        "objective.image_text.loss": "clip",
        "objective.image_text.initial_scale": 1 / 0.07,
        "optimizer.learning_rate": 5e-4,
        "optimizer.warmup_steps": 2000,
        "optimizer.weight_decay": 0.2,
        "optimizer.decayed": "matrices",
        "optimizer.b1": 0.9,
        "optimizer.b2": 0.98,
        "optimizer.eps": 1e-6,
        "optimizer.grad_clip_norm": None,
        "data.train_ops": "random_resized_crop(area_min=0.9)",
        "data.captions.tokenizer": "clip",
    },
    "siglip_b16": SHARED
    | {
        "model.use_norm_pre": False,
        "model.use_cls": False,
        "model.pooling": "map",
        "model.norm_eps": 1e-6,
        "model.activation": "gelu_tanh",
        "text.variant": "B",
        "text.vocab_size": 32_000,
        "text.context": 64,
        "text.is_causal": False,
        "text.pool": "last",
        "text.embed_dim": 768,
        "text.has_projection_bias": True,
        "text.activation": "gelu_tanh",
        "objective.image_text.loss": "siglip",
        "objective.image_text.initial_scale": 10.0,
        "objective.image_text.initial_bias": -10.0,
        "objective.image_text.has_image_projection": False,
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.1,
        "optimizer.b2": 0.95,
        "optimizer.grad_clip_norm": 1.0,
        "data.mean": (0.5, 0.5, 0.5),
        "data.captions.tokenizer": "sentencepiece(path='c4_en.model')",
    },
}
# Of open_clip's ViT-B-16 (149.6 M) and ViT-B-16-SigLIP (203.2 M), whole models.
NUM_PARAMETERS = {"openclip_b16": 149_620_737, "siglip_b16": 203_155_970}

SMALL = {
    "model": {"width": 16, "depth": 1, "num_heads": 2, "image_size": (32, 32), "dtype": "float32"},
    "text": {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "embed_dim": 16, "dtype": "float32"},
    "checkpoint": {"every_steps": 4},
    "run": {"log_every_steps": 1, "use_tensorboard": False, "compile_cache": "off"},
}
NUM_PAIRS = 24


def card(name, arg=None):
    return from_mapping(load_module(str(card_paths()[name])).get_config(arg))


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_those_of_the_recipe(name):
    config, want = card(name), RECIPES[name]
    assert {key: flatten(to_dict(config))[key] for key in want} == want
    make_objective(config).check()
    shapes = jax.eval_shape(make_objective(config).init, jax.random.key(0))[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == NUM_PARAMETERS[name]
    with_registers = card(name, "registers=4,data_dir=root")
    assert with_registers.data.data_dir == "root"
    model, plain = with_registers.model, config.model
    assert count_parameters(model) == count_parameters(plain) + 4 * 768


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of tars, as WebDataset has them, with a split to train on and one to evaluate."""
    root, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, shards in {"train": 3, "val": 1}.items():
        (root / split).mkdir()
        for shard in range(shards):
            with tarfile.open(root / split / f"{shard:05}.tar", "w") as tar:
                for i in range(NUM_PAIRS // 3):
                    file, name = io.BytesIO(), f"{shard:05}{i:04}"
                    Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(file, "JPEG")
                    text = f"a picture with number {shard * 8 + i} of {split}".encode()
                    for suffix, data in (("jpg", file.getvalue()), ("txt", text)):
                        member = tarfile.TarInfo(f"{name}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
    return root


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A small sentencepiece model with an end token."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    texts = [f"a picture with number {i} of train and val" for i in range(100)]
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=40, minloglevel=2
        )
    return path


def small(name, arg, **changes):
    sections = {
        section: SMALL.get(section, {}) | changes.get(section, {}) for section in {**SMALL, **changes}
    }
    return vit_registers.recipe(name, **arg, **sections)


@pytest.mark.slow
@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_a_small_run_on_a_folder_of_tars(name, registers, root, request, tmp_path):
    arg = {"registers": registers, "data_dir": str(root), "batch": 8, "steps": 6}
    data = {"eval_batch_size": 8, "captions": {"tokenizer": "bytes"}}
    text = {"vocab_size": 258}
    if name == "siglip_b16":
        arg["vocab"] = str(request.getfixturevalue("vocabulary"))
        data, text = {"eval_batch_size": 8}, {"vocab_size": 40}
    if name == "openclip_b16":
        data["eval_ops"] = "resize_small(32) | central_crop"
    config = small(name, arg, data=data, text=text)
    train(config, str(tmp_path / "run"))
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [one["train/loss"] for one in records if "train/loss" in one]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    last = next(one for one in records[::-1] if "retrieval/image_to_text_r1" in one)
    assert (last["step"], last["retrieval/images"]) == (6, NUM_PAIRS // 3)
    model = vit_registers.load_image_text(str(tmp_path / "run"))
    if not registers:  # the format of transformers has none
        model.save(tmp_path / "weights", "transformers")
