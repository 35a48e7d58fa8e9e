"""Settings that cannot be meant are refused when a config is read, all of them in one line."""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.quick import parametrize_quick
from vit_registers.config import Config, Model, check_section, flatten, from_mapping, override, to_dict
from vit_registers.config.rules import MAX_STEPS, RULES
from vit_registers.errors import ConfigError
from vit_registers.training.durations import durations


def _settings(section, prefix=""):
    """{name: type} of all settings, also of sections within sections."""
    found = {}
    for name, hint in typing.get_type_hints(section).items():
        inner = dataclasses.is_dataclass(hint)
        found |= _settings(hint, f"{prefix}{name}.") if inner else {f"{prefix}{name}": hint}
    return found


SETTINGS = _settings(Config)
TUPLES = {"model.image_size": 2, "data.image_size": 2, "data.mean": 3, "data.std": 3, "data.also_eval": 1}
PAIRS = ("mask_ratios", "temperatures", "momentum")
TUPLES |= {"tasks.logistic.exponents": 2, "tasks.depth.range_m": 2, "tasks.linear.learning_rates": 1}
TUPLES |= {
    "tasks.linear.num_blocks": 1,
    "tasks.knn.neighbors": 1,
    "tasks.depth.crop": 2,
    "tasks.retrieval.tops": 1,
}
TUPLES |= {f"objective.self_distillation.{name}": 2 for name in PAIRS}


def _has(hint, kind):
    return hint is kind or any(_has(part, kind) for part in typing.get_args(hint))


FLOATS = [name for name, hint in SETTINGS.items() if _has(hint, float)]
NUMBERS = [name for name, hint in SETTINGS.items() if _has(hint, float) or _has(hint, int)]


def _refusal(**settings):
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    with pytest.raises(ConfigError) as error:
        override(to_dict(Config()), changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def _filled(name, value):
    return (value,) * TUPLES[name] if name in TUPLES else value


def test_every_number_has_a_rule():
    related = {"model.summary_factor"}  # to the grid of patches
    assert set(NUMBERS) - related <= set(RULES) <= set(SETTINGS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e400])
@pytest.mark.parametrize("name", FLOATS)
def test_nan_and_infinity_are_never_legal(name, value):
    assert _refusal(**{name: _filled(name, value)}).startswith(f"{name}={_filled(name, value)!r}: must be ")


@pytest.mark.parametrize("value", [-2, 2**31])
@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in FLOATS and name in RULES])
def test_whole_numbers_are_bounded_on_both_sides(name, value):
    assert _refusal(**{name: _filled(name, value)}).startswith(f"{name}={_filled(name, value)!r}: must be ")


CANNOT_BE = [
    ("optimizer.eps", 0.0, "> 0"),
    ("optimizer.eps", -1e-8, "> 0"),
    ("optimizer.eps", 1e-50, "> 0 in float32"),
    ("optimizer.learning_rate", 0.0, "> 0"),
    ("optimizer.learning_rate", 1e39, "finite in float32"),
    ("optimizer.warmup_learning_rate", -1.0, ">= 0"),
    ("optimizer.min_learning_rate", -1.0, ">= 0"),
    ("optimizer.weight_decay", -0.1, ">= 0"),
    ("optimizer.b1", 1.0, ">= 0 and < 1"),
    ("optimizer.b2", -0.1, ">= 0 and < 1"),
    ("optimizer.b2", 1 - 1e-9, "< 1 in float32"),
    ("optimizer.ema_decay", 1.0, ">= 0 and < 1, or None for no average"),
    ("optimizer.ema_decay", -0.5, ">= 0 and < 1"),
    ("optimizer.ema_decay", 1 - 1e-9, "< 1 in float32"),
    ("optimizer.grad_clip_norm", 0.0, "> 0, or None for no clipping"),
    ("optimizer.accumulation_steps", 0, ">= 1"),
    ("optimizer.warmup_steps", -1, ">= 0"),
    ("optimizer.warmup_epochs", -0.5, ">= 0 and <= 100,000,000"),
    ("data.name", "", "text that is not empty"),
    ("data.name", " ", "text that is not empty"),
    ("data.data_dir", "", "text that is not empty"),
    ("data.train_split", "", "text that is not empty"),
    ("data.eval_split", "", "text that is not empty"),
    ("data.std", (0.0, 0.0, 0.0), "> 0"),
    ("data.std", (0.5, 0.5, -0.5), "> 0"),
    ("data.std", (0.5, 0.5, 1e-40), "> 0 in float32"),
    ("data.mean", (0.5, 0.5, 1e39), "finite in float32"),
    ("objective.classification.mixup_alpha", -1.0, ">= 0"),
    ("objective.classification.mixup_alpha", 1e-39, "0 for no mixing"),
    ("objective.classification.cutmix_alpha", -1.0, ">= 0"),
    ("objective.classification.mix_groups", 0, ">= 1"),
    ("data.image_size", (0, 32), ">= 1"),
    ("data.batch_size", 0, ">= 1"),
    ("data.eval_batch_size", 0, ">= 1"),
    ("data.shuffle_buffer", 0, ">= 1"),
    ("data.repeats", 0, ">= 1"),
    ("data.also_eval", ("digits",), "of the form 'NAME SPLIT'"),
    ("data.also_eval", ("digits test", " "), "of the form 'NAME SPLIT'"),
    ("model.image_size", (32, 0), ">= 1"),
    ("model.image_size", (32, 70_000), "<= 65,535"),
    ("model.patch_size", 0, ">= 1"),
    ("model.width", 0, ">= 1"),
    ("model.num_heads", 0, ">= 1"),
    ("model.mlp_dim", 0, ">= 1"),
    ("model.depth", -1, ">= 0"),
    ("model.depth", 1_000_000, "<= 1,000"),
    ("model.num_classes", -1, ">= 0"),
    ("model.num_registers", -1, ">= 0"),
    ("model.drop_path", 1.0, ">= 0 and < 1"),
    ("model.norm_eps", 0.0, "> 0"),
    ("init_from.path", "", "text that is not empty"),
    ("init_from.num_heads", 0, ">= 1"),
    ("mesh.data", 0, ">= 1, or -1"),
    ("mesh.fsdp", -2, ">= 1, or -1"),
    ("checkpoint.every_steps", 0, ">= 1"),
    ("checkpoint.keep_last", 1, ">= 2, so that"),
    ("checkpoint.keep_best", -1, ">= 0"),
    ("checkpoint.max_failed_saves", 0, ">= 1"),
    ("run.total_steps", 0, ">= 1"),
    ("run.total_steps", 10**9, "<= 100,000,000"),
    ("run.total_epochs", 0.0, "> 0"),
    ("run.total_epochs", 1e300, "> 0 and <= 100,000,000"),
    ("run.seed", -1, ">= 0 and < 2**31"),
    ("run.seed", 2**31, ">= 0 and < 2**31"),
    ("run.log_every_steps", 0, ">= 1"),
    ("run.eval_every_steps", 0, ">= 1"),
    ("run.eval_every_epochs", 0.0, "> 0"),
    ("run.max_skipped_steps", -1, ">= 0"),
    ("run.stop_every_steps", 0, ">= 1"),
    ("run.lost_timeout_s", 0.0, "> 0"),
    ("run.hang_timeout_s", -1.0, ">= 0"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), CANNOT_BE, ids=lambda part: str(part))
def test_what_cannot_be_meant_is_refused_with_what_is_wanted(name, value, wanted):
    assert _refusal(**{name: value}).startswith(f"{name}={value!r}: must be {wanted}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective.classification.mixup_alpha", 1e-30),
        ("objective.classification.cutmix_alpha", 0.0),
        ("optimizer.ema_decay", 0.0),
        ("optimizer.ema_decay", 0.99999),
        ("optimizer.b1", 0.0),
        ("optimizer.eps", 1e-30),
        ("optimizer.grad_clip_norm", None),
        ("optimizer.learning_rate", 1e30),
        ("optimizer.warmup_epochs", 0.0),
        ("mesh.data", -1),
        ("checkpoint.keep_best", 0),
        ("run.hang_timeout_s", 0.0),
        ("run.max_skipped_steps", 0),
        ("run.seed", 2**31 - 1),
        ("model.layer_scale_init", -1.0),
        ("model.num_classes", 0),
        ("data.also_eval", ("imagenet2012 train[99%:]", "digits test")),
    ],
)
def test_the_ends_of_what_can_be_are_taken(name, value):
    assert flatten(to_dict(override(to_dict(Config()), {name: value})))[name] == value


def test_all_are_listed_in_one_line():
    line = _refusal(model__num_heads=0, optimizer__eps=0.0, data__name="", run__seed=-1)
    assert line == (
        "model.num_heads=0: must be >= 1; data.name='': must be text that is not empty; "
        "optimizer.eps=0.0: must be > 0; run.seed=-1: must be >= 0 and < 2**31"
    )


@pytest.mark.parametrize(
    ("channels", "mean", "std", "named"),
    [
        (1, (0.5,) * 3, (0.5,) * 3, ("mean", "std")),
        (1, (0.5,), (0.5,) * 3, ("std",)),
        (3, (0.5,), (0.5,) * 3, ("mean",)),
        (3, (), (0.5,) * 3, ("mean",)),
    ],
)
def test_a_mean_and_a_deviation_for_each_channel(channels, mean, std, named):
    line = _refusal(model__channels=channels, data__mean=mean, data__std=std)
    assert line.count("must have one value for each channel, and model.channels=") == len(named)
    assert all(f"data.{name}={({'mean': mean, 'std': std})[name]!r}" in line for name in named)
    override(to_dict(Config()), {"model.channels": 1, "data.mean": (0.1,), "data.std": (0.2,)})


def test_what_was_saved_is_read_whatever_its_values():
    values = to_dict(Config()) | {"optimizer": {"eps": 0.0}, "run": {"log_every_steps": 0}}
    assert from_mapping(values, checked=()).optimizer.eps == 0.0
    assert override(values, {"data.name": "digits"}, checked=("model", "data")).run.log_every_steps == 0
    with pytest.raises(ConfigError, match=r"data\.name=''"):
        override(values, {"data.name": ""}, checked=("model", "data"))
    assert override(values, {"optimizer.eps": 1e-8, "run.log_every_steps": 1}).optimizer.eps == 1e-8


def test_sections_by_themselves():
    check_section("model", Model())
    with pytest.raises(ConfigError, match=r"^model.depth=-1: must be >= 0; model.num_heads=0: must be >= 1$"):
        check_section("model", Model(depth=-1, num_heads=0))


def test_lengths_that_no_run_has_are_refused():
    base = override(to_dict(Config()), {"run.total_epochs": 1e7, "data.batch_size": 1})
    with pytest.raises(ConfigError, match=r"run.total is 5e\+08 steps: must be <= 100,000,000"):
        durations(base.run, base.optimizer, base.data, 50)
    assert durations(base.run, base.optimizer, base.data, 10).total_steps == MAX_STEPS


@parametrize_quick("alpha", [1.2e-38, 1e-30, 1e-3, 1.0, 1e10, 3e38], number=2)
def test_every_alpha_that_is_taken_gives_shares(alpha):
    """jax.random.beta gives NaN for what is 0 in float32."""
    override(to_dict(Config()), {"objective.classification.mixup_alpha": alpha})
    keys = jax.random.split(jax.random.key(0), 64)
    lam = jax.jit(jax.vmap(lambda key: jax.random.beta(key, jnp.float32(alpha), jnp.float32(alpha))))(keys)
    assert np.all((lam >= 0) & (lam <= 1))
