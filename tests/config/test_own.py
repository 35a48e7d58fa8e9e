"""Configs of one's own: recipe() derives what a run card derives, and --print_config can be read back."""

import dataclasses
import json
from pathlib import Path

import pytest

import vit_registers
from vit_registers.config import Config, flatten, from_mapping, own, to_dict
from vit_registers.config.cards import card_paths, load_module
from vit_registers.errors import ConfigError

CARDS = [name for name in card_paths() if name != "transfer"]  # which reads weights


def get_config(card, arg=None):
    return from_mapping(load_module(str(card_paths()[card])).get_config(arg))


@pytest.mark.parametrize("card", CARDS)
def test_without_overrides_it_is_the_run_card(card):
    assert vit_registers.recipe(card) == get_config(card)


@pytest.mark.parametrize(
    ("card", "overrides", "arg"),
    [
        ("digits", {"run": {"total_steps": 50}}, "steps=50"),
        ("digits", {"run.total_steps": 50}, "steps=50"),
        ("digits", {"steps": 50, "registers": 4}, "registers=4,steps=50"),
        ("digits:registers=4", {"model": {"mask": "fractal"}, "model.summary_factor": 2}, None),
        ("vit_s16_i1k", {"model": {"summary_factor": 2}, "data": {"name": "folder"}}, "k=2,data=folder"),
        ("registers_table", {"data": "folder", "run": {"total_epochs": 3}}, "data=folder,epochs=3"),
        # The order of settings has no effect: this mask has one only with summaries.
        (
            "fractal_table",
            {"scale": "digits", "model": {"mask": "fractal", "summary_factor": 2}},
            "scale=digits,k=2,mask=fractal",
        ),
    ],
)
def test_a_setting_that_is_an_argument_is_set_by_it(card, overrides, arg):
    name, _, given = card.partition(":")
    arg = arg or f"{given},mask=fractal,k=2"
    assert vit_registers.recipe(card, **overrides) == get_config(name, arg)


def test_the_warm_up_follows_the_length_unless_it_is_given():
    assert vit_registers.recipe("digits", run={"total_steps": 50}).optimizer.warmup_steps == 10
    given = vit_registers.recipe("digits", run={"total_steps": 50}, optimizer={"warmup_steps": 7})
    assert given.optimizer.warmup_steps == 7 and given.run.total_steps == 50


@pytest.mark.parametrize("every", [1, 7, 500])
def test_other_settings_change_nothing_else(every):
    """With one step, the run card saves every step; the other way round does not hold."""
    config = vit_registers.recipe("fractal_table:scale=digits", checkpoint={"every_steps": every})
    plain = get_config("fractal_table", "scale=digits")
    assert config == dataclasses.replace(
        plain, checkpoint=dataclasses.replace(plain.checkpoint, every_steps=every)
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"registrs": 3}, "digits has no argument 'registrs': did you mean 'registers'"),
        ({"model": {"dpth": 3}}, "did you mean 'model.depth'"),
        ({"model.dpth": 3}, "did you mean 'model.depth'"),
        ({"model": 3}, "it is a section, of variant"),
        ({"steps": "x"}, "'steps'='x' is of type str"),
        ({"model": {"depth": -1}}, "model.depth=-1: must be >= 0"),
        ({"mask": "none,registers=9"}, "mask='none,registers=9': a comma begins another argument"),
        ({"run": {"total_steps": "many"}}, "run.total_steps='many' is of type str"),
        ({"steps": 30, "run": {"total_steps": 20}}, "steps=30 and run.total_steps=20 are the same setting"),
        ({"steps": 30, "run.total_steps": 2000}, "steps=30 and run.total_steps=2000 are the same setting"),
        ({"mask": "fractal", "k": 2, "model": {"mask": "none"}}, "give one of them"),
        ({"run": {"seed": 1}, "run.seed": 2}, "run.seed is given twice, as 1 and 2: give one of them"),
    ],
)
def test_wrong_overrides_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        vit_registers.recipe("digits", **overrides)


def test_an_argument_and_its_setting_may_agree():
    config = vit_registers.recipe(
        "digits", steps=20, registers=4, run={"total_steps": 20}, model={"depth": 4}
    )
    assert config == vit_registers.recipe("digits:steps=20,registers=4", model={"depth": 4})


@pytest.mark.parametrize("card", [None, "", "~no_such_user/mine.py", "folder/", "./text.py"])
def test_what_is_no_config_is_refused(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.py").write_text("x = 1")
    with pytest.raises(ConfigError, match=r"is no config|is not a config|no such"):
        vit_registers.recipe(card)


@pytest.mark.parametrize("card", CARDS)
def test_a_printed_config_is_read_back(card, tmp_path):
    config = vit_registers.recipe(card, model={"mask": "file(path='a \"b\".npy')"})
    path = tmp_path / "mine.py"
    path.write_text(own.config_text(config, "Mine."))
    assert vit_registers.recipe(str(path)) == config
    assert vit_registers.recipe(str(path), model={"depth": 2}).model.depth == 2
    with pytest.raises(ConfigError, match="'registers' is unknown"):
        load_module(str(path)).get_config("registers=4")


def test_print_config_prints_the_settings_of_the_flags(run_here, tmp_path):
    flags = ("--config=digits:registers=4,steps=50", "--config.model.depth=2", "--print_config")
    code, out, err = run_here("train", *flags, "--config.run.total_epochs=2.5")
    assert code == 0 and not err
    path = tmp_path / "mine.py"
    path.write_text(out)
    own_run = {"total_steps": None, "total_epochs": 2.5}
    assert vit_registers.recipe(str(path)) == vit_registers.recipe(
        "digits", registers=4, steps=50, model={"depth": 2}, run=own_run
    )


def test_the_template_in_the_documentation_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs/configs.md").read_text()
    template = page.partition("<!-- template -->\n```python\n")[2].partition("```")[0]
    assert len(template.splitlines()) == 12 and "get_config" in template
    path = tmp_path / "mine.py"
    path.write_text(template)
    config = vit_registers.recipe(str(path), registers=2)
    assert config.model.num_registers == 2 and config != Config()
    assert json.dumps(flatten(to_dict(config)))
