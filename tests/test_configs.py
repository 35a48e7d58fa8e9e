"""Every config file, and every point of every sweep, builds; and settings are read strictly."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import (
    Config,
    Data,
    Model,
    Optimizer,
    Run,
    from_mapping,
    override,
    parse_arg,
    to_config_dict,
    to_dict,
)
from vit_registers.errors import ConfigError
from vit_registers.interop.export import targets
from vit_registers.models.params import abstract_model, count_parameters
from vit_registers.models.vit import token_layout
from vit_registers.training.durations import durations

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def required(tmp_path_factory):
    """required(config file): the arguments that it cannot do without."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    model = Model(width=32, depth=1, num_heads=2, mlp_dim=64, patch_size=16, image_size=(64, 64))
    shapes = abstract_model(model)[1]
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    targets.write(targets.export(model, params, "timm"), path, np.float32, Data())
    return lambda config: f"path={path},heads=2," if config.stem == "transfer" else ""


SCALES = ("imagenet", "cifar28", "cifar32", "digits")
SWEEPS = [(path, "") for path in CONFIGS if path.stem != "fractal_table"]
SWEEPS += [(path, f"scale={scale}") for path in CONFIGS if path.stem == "fractal_table" for scale in SCALES]


@parametrize_quick(
    ("path", "arg"), SWEEPS, number=len(SWEEPS) - len(SCALES), ids=lambda x: getattr(x, "stem", x)
)
def test_every_point_of_the_sweep_builds(path, arg, required):
    module = _load(path)
    base = module.get_config(required(path) + arg)
    points = list(module.sweep(arg))
    assert points
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points)
    assert jax.tree.leaves(abstract_model(from_mapping(base).model)[1])
    shapes = set()
    for point in points:
        model = dataclasses.replace(override(base, point).model, depth=1)  # all blocks are alike
        if model not in shapes:
            shapes.add(model)
            assert jax.tree.leaves(abstract_model(model)[1])


@pytest.mark.parametrize(
    ("scale", "tokens"),
    [
        ("imagenet", {0, 4, 9, 17, 59}),
        ("cifar28", {0, 4, 9, 17, 59}),
        ("cifar32", {0, 17, 85}),
        ("digits", {0, 5}),
    ],
)
def test_labels_of_the_fractal_table_say_how_many_tokens_there_are(scale, tokens):
    module = _load(CONFIGS[0].parent / "fractal_table.py")
    arg, found = f"scale={scale},seeds=1", set()
    for point in module.sweep(arg):
        label = module.label(point, arg)
        layout = token_layout(override(module.get_config(arg), point).model)
        assert layout.num_registers + layout.num_summaries == int(label["extra tokens"])
        found.add(tuple(label.values()))
    assert {int(count) for _, count, _ in found} == tokens
    assert len(found) == len(list(module.sweep(arg)))


def test_recipe_b_has_the_parameters_that_are_published_for_each_number_of_registers():
    module = _load(CONFIGS[0].parent / "registers_table.py")
    counts = {}
    for point in module.sweep():
        model = override(module.get_config(), point).model
        counts[model.num_registers] = count_parameters(model)
    assert counts == {count: 22_059_496 + 384 * count for count in (0, 2, 4, 8, 16)}
    assert counts[4] == 22_061_032


def test_recipe_c_is_that_of_the_commands_of_deit3_for_imagenet21k():
    """README_revenge.md of facebookresearch/deit; ViT-B with 1000 classes has 86,585,320 parameters."""
    module = _load(CONFIGS[0].parent / "deit3_b16_i21k.py")
    first = from_mapping(module.get_config("registers=4"))
    second = from_mapping(module.get_config("registers=4,stage=1k,path=/runs/first"))
    assert count_parameters(first.model) == 86_585_320 + 769 * (21_841 - 1000) + 4 * 768
    assert count_parameters(second.model) == 86_585_320 + 4 * 768
    for config, rate, drop_path, epochs in ((first, 1e-3, 0.1, 240), (second, 3e-4, 0.15, 50)):
        optimizer, mixing = config.optimizer, config.objective.classification
        found = optimizer.learning_rate, config.model.drop_path, config.run.total_epochs
        assert found == (rate, drop_path, epochs)
        assert (optimizer.name, optimizer.weight_decay, optimizer.warmup_epochs) == ("lamb", 0.02, 5)
        assert (config.data.batch_size, config.data.repeats, mixing.mix_groups) == (2048, 1, 32)
        assert (mixing.loss, mixing.label_smoothing) == ("softmax", 0.1)
        assert (mixing.mixup_alpha, mixing.cutmix_alpha) == (0.0, 1.0)
        assert config.data.train_ops.startswith(
            "resize_small(224, method='pil_bicubic') | random_crop(4, mode='reflect') | flip | three_augment"
        )
    assert first.data.train_split != first.data.eval_split and second.data.eval_split == "validation"
    assert second.init_from.path == "/runs/first" and not second.init_from.keep_head
    for wrong, message in (
        ("stage=1k", "'path' is missing"),
        ("path=a", "stage=1k"),
        ("stage=2k", "'stage'"),
    ):
        with pytest.raises(ConfigError, match=message):
            module.get_config(wrong)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_arguments_reach_the_model(path, required):
    config = from_mapping(_load(path).get_config(required(path) + "registers=3,mask=fractal,k=2"))
    assert (config.model.num_registers, config.model.mask, config.model.summary_factor) == (3, "fractal", 2)
    with pytest.raises(ConfigError, match="'registr' is unknown: did you mean 'registers'"):
        _load(path).get_config("registr=3")


def test_config_survives_config_dict_and_json():
    config = Config(model=Model(width=64, num_heads=2), data=Data(image_size=(32, 48)))
    assert from_mapping(to_config_dict(config)) == config
    assert from_mapping(json.loads(json.dumps(to_dict(config)))) == config


def test_config_dict_shows_every_setting_with_its_default():
    shown = to_config_dict(Config()).to_dict()
    assert shown == to_dict(Config())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "model.num_register",
            1,
            r"config.model.num_register is not a setting: did you mean 'model.num_registers'",
        ),
        ("modle.num_registers", 1, "did you mean 'model.num_registers'"),
        ("model.num_registers", "4", r"config.model.num_registers='4' is of type str: must be int"),
        ("model.num_registers", True, "is of type bool: must be int"),
        ("model.num_registers", 2.0, "is of type float: must be int"),
        ("model.image_size", (8,), "must be a tuple such as"),
        ("model.image_size", 8, "must be a tuple such as"),
        ("data.mean", ("a",), r"config.data.mean\[0\]='a'"),
    ],
)
def test_wrong_keys_and_types_are_refused_by_name(path, value, message):
    with pytest.raises(ConfigError, match=message):
        override(to_dict(Config()), {path: value})


def test_whole_numbers_are_taken_for_floats_and_none_where_allowed():
    config = override(to_dict(Config()), {"optimizer.learning_rate": 1, "optimizer.grad_clip_norm": None})
    assert config.optimizer == Optimizer(learning_rate=1.0, grad_clip_norm=None)
    with pytest.raises(ConfigError, match="batch_size=None"):
        override(to_dict(Config()), {"data.batch_size": None})


def test_unknown_sections_of_a_config_dict_are_refused():
    values = to_config_dict(Config())
    with values.unlocked():
        values.extra = ml_collections.ConfigDict({"a": 1})
    with pytest.raises(ConfigError, match=r"config.extra.a is not a setting: sections: model"):
        from_mapping(values)


def test_arguments_have_the_type_of_their_default():
    text = "file(path='a,b.npy', sha256='c')"
    assert vars(parse_arg(f"n=1,s={text},flag", n=0, s="", flag=False)) == {"n": 1, "s": text, "flag": True}
    a = parse_arg("n=3,x=1,s=y=z,flag", n=0, x=0.5, s="", flag=False, other=7)
    assert (a.n, a.x, a.s, a.flag, a.other) == (3, 1.0, "y=z", True, 7)
    for arg, message in (("n=x", "'n'='x' is of type str"), ("n=1.5", "be int"), ("flag=1", "be bool")):
        with pytest.raises(ConfigError, match=message):
            parse_arg(arg, n=0, flag=False)


def test_durations_in_epochs_become_steps():
    config = Config(
        data=Data(batch_size=1024),
        optimizer=Optimizer(warmup_steps=10_000),
        run=Run(total_epochs=90.0, eval_every_epochs=1.0),
    )
    lengths = durations(config.run, config.optimizer, config.data, 1_268_355)
    assert (lengths.total_steps, lengths.warmup_steps, lengths.eval_every_steps) == (111_477, 10_000, 1239)


@pytest.mark.parametrize(
    ("run", "optimizer", "message"),
    [
        ({}, {}, "run.total_steps and run.total_epochs are both unset"),
        ({"total_steps": 1, "total_epochs": 1.0}, {}, "both set"),
        ({"total_steps": 0}, {}, "must be >= 1"),
        ({"total_steps": 10}, {"warmup_steps": 10}, "warmup is 10 steps of 10"),
    ],
)
def test_impossible_durations_are_refused(run, optimizer, message):
    with pytest.raises(ConfigError, match=message):
        durations(Run(**run), Optimizer(**optimizer), Data(), 100)
