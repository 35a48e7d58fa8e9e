"""A run folder of format 1 (tests/golden/format1, made by commit 9d67c80) is read, evaluated and resumed."""

import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import vit_registers
from vit_registers.config import Config, from_saved, override, to_dict
from vit_registers.config.objectives import RENAMED
from vit_registers.errors import ConfigError
from vit_registers.evaluate import evaluate
from vit_registers.runs.checkpoint_folder import read_meta
from vit_registers.runs.formats import from_format, in_format
from vit_registers.runs.reading import trained_config
from vit_registers.train import train

GOLDEN = Path(__file__).parents[1] / "golden/format1"


@pytest.fixture
def run(tmp_path):
    """The run folder after step 10 of 20."""
    with tarfile.open(GOLDEN / "run.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def _expected():
    return [json.loads(line) for line in (GOLDEN / "expected_metrics.jsonl").read_text().splitlines()]


def test_settings_are_read_under_their_old_names(run):
    assert read_meta(str(run), 10)["format"] == 1
    config = trained_config(str(run), 10)
    mixing = config.objective.classification
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.use_mixup_folding) == (0.2, 1.0, True)
    assert (mixing.loss, config.objective.name) == ("softmax", "classification")
    assert from_saved(json.loads((run / "config.json").read_text())) == config


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_refused_with_the_new_one_where_settings_are_given(old):
    with pytest.raises(ConfigError, match=f"config.{old} is not a setting: it is now '{RENAMED[old]}'"):
        override(to_dict(Config()), {old: 1})


@pytest.mark.parametrize("params", ["params", "ema"])
def test_the_model_is_that_which_was_saved(run, params):
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    logits = vit_registers.load(str(run), params=params)(image).logits
    np.testing.assert_allclose(logits, np.load(GOLDEN / "expected_logits.npz")[params], atol=1e-5)


@pytest.mark.parametrize(("params", "name"), [("params", "test"), ("ema", "test_ema")])
def test_it_is_evaluated(run, params, name):
    found = evaluate(str(run), step=None, overrides={}, params=params)
    expected = next(one for one in _expected() if one["step"] == 10 and f"{name}/loss" in one)
    assert found["loss"] == pytest.approx(expected[f"{name}/loss"], rel=1e-5)
    for key in ("top1", "top5", "images"):
        assert found[key] == pytest.approx(expected[f"{name}/{key}"], abs=3 / 359)


@pytest.mark.slow
def test_it_is_resumed_and_saved_in_the_current_format(run):
    train(trained_config(str(run), 10), str(run))
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("time_s", "images_per_s")
    expected = [one for one in _expected() if not set(times) & one.keys()]
    found = [one for one in found if not set(times) & one.keys()]
    assert [one["step"] for one in found] == [one["step"] for one in expected]
    for a, b in zip(found, expected, strict=True):
        for name, value in b.items():
            assert a[name] == pytest.approx(value, rel=1e-3, abs=3 / 359), (b["step"], name)
    assert read_meta(str(run), 20)["format"] == 2
    for step in (10, 20):
        assert vit_registers.load(str(run), step=step).layout.num_registers == 2


def test_a_state_is_the_same_there_and_back():
    state = {
        "params": {"vit": {"a": 1, "blocks": {0: {"kernel": 2}}}},
        "opt_state": ({"vit": {"a": 3, "blocks": {0: {"kernel": 4}}}}, 5),
    }
    old = in_format(state, 1)
    assert old == {
        "params": {"a": 1, "blocks": {0: {"kernel": 2}}},
        "opt_state": ({"a": 3, "blocks": {0: {"kernel": 4}}}, 5),
    }
    assert from_format(old, 1, state) == state == from_format(in_format(state, 2), 2, state)
    assert jax.tree.structure(from_format(old, 1, state)) == jax.tree.structure(state)
