"""The names of runs, and points that are refused before anything starts."""

import json

import pytest

from vit_registers import sweep
from vit_registers.config import from_mapping, to_config_dict, to_dict
from vit_registers.errors import ConfigError
from vit_registers.runs import sweeps


def test_names_are_short_safe_and_distinct():
    points = [{"model.num_registers": n, "run.seed": 0} for n in (0, 4)]
    assert sweeps.run_names(points) == ["num_registers=0,seed=0", "num_registers=4,seed=0"]
    two_ends = [{}, {"optimizer.name": "lamb", "data.name": "a"}]
    assert sweeps.run_names(two_ends) == ["default", "optimizer.name=lamb,data.name=a"]
    names = sweeps.run_names(
        [
            {"data.train_ops": "a | b"},
            {"data.train_ops": "a / b"},
            {"data.train_ops": "x" * 400},
            {"model.image_size": (8, 16)},
            {"optimizer.learning_rate": 3e-5},
        ]
    )
    assert [name.rpartition("-")[0] for name in names[:2]] == ["train_ops=a_b"] * 2
    assert names[3:] == ["image_size=8x16", "learning_rate=3e-05"]
    assert len(set(names)) == 5
    assert all(len(name) < 200 and not set(name) & set("/ |\0") for name in names)
    with pytest.raises(ConfigError, match="points 0 and 2 of the sweep are the same"):
        sweeps.run_names([{"a.b": 1, "a.c": 2}, {"a.b": 2}, {"a.c": 2, "a.b": 1}])


def test_training_gets_the_config_of_the_point(make):
    common = {"data.mean": (0.25,), "optimizer.ema_decay": 0.5, "model.mlp": None, "data.also_eval": ("a b",)}
    work = make("steps=7", common)
    sweep.check_sweep(work, work.runs)
    run = work.runs[3]
    assert (run.config.run.total_steps, run.config.data.mean) == (7, (0.25,))
    assert (run.config.model.positions, run.config.model.num_registers) == ("none", 2)
    assert f"--workdir={run.folder}" in run.arguments
    taken = sweeps.parse_arguments(to_config_dict(work.base), run.arguments)
    assert (taken.data.also_eval, taken.data.mean, taken.optimizer.ema_decay) == (("a b",), (0.25,), 0.5)
    assert from_mapping(json.loads(json.dumps(to_dict(run.config)))) == run.config


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"model.num_registers"', '"model.num_register"', "point 0 .*did you mean 'model.num_registers'"),
        ('("learned", "none")', '("learned", "nine")', "point 2 of the sweep .*nine"),
        ("in (0, 2)", "in (0, 0)", "points 0 and 1 of the sweep are the same"),
        ("in range(2)", "in range(0)", "yields no point"),
        ("def sweep(arg=None)", "def sweep()", r"def sweep\(arg: .* is required"),
        ("def sweep(arg=None)", "def weep(arg=None)", r"has no sweep\(\)"),
    ],
)
def test_bad_points_are_refused_before_anything_starts(make, config, before, after, message):
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=message):
        sweep.check_sweep(work := make(), work.runs)


def test_point_that_no_flag_can_say_is_refused(make, config):
    """None, where the config has text: a flag would take it as the text 'None'."""
    text = config.read_text().replace('name="digits"', 'name="digits", data_dir="somewhere"')
    config.write_text(text.replace('"run.seed": seed', '"run.seed": seed, "data.data_dir": None'))
    with pytest.raises(ConfigError, match=r"point 0 of .* has a setting that no flag can set"):
        sweep.check_sweep(work := make(), work.runs)


def test_setting_of_the_sweep_cannot_be_given_for_all(make):
    with pytest.raises(ConfigError, match=r"--config\.run\.seed is set by the sweep of .*: leave it out"):
        make(None, {"run.seed": 3})
