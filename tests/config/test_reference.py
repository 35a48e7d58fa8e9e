"""The reference of settings: complete, current, and what the help of train prints."""

import dataclasses
from pathlib import Path

import pytest

from vit_registers.config import Config, flatten, reference, to_dict
from vit_registers.interop.unwrap import SOURCES
from vit_registers.models.blocks import REMAT, VARIANTS
from vit_registers.models.initializers import INITS
from vit_registers.models.masks import MASKS
from vit_registers.models.pooling import POOLINGS
from vit_registers.models.resampling import RESAMPLINGS
from vit_registers.models.text.initializers import TEXT_INITS
from vit_registers.models.text.tower import POOLS
from vit_registers.training.optimizer import OPTIMIZERS
from vit_registers.training.schedules import SCHEDULES

PAGE = Path(__file__).parents[2] / "docs/settings.md"
SETTINGS = {setting.name: setting for section in reference.sections() for setting in section.settings}


def test_the_page_is_current():
    assert PAGE.read_text() == reference.settings_markdown(), "python -m tools.settings_page"


def test_every_setting_is_there_with_its_default_and_a_text():
    assert {name: one.default for name, one in SETTINGS.items()} == {
        name: repr(value) for name, value in flatten(to_dict(Config())).items()
    }
    assert all(setting.text for setting in SETTINGS.values())
    assert all(section.text for section in reference.sections())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("model.variant", VARIANTS),
        ("model.init", INITS),
        ("model.mask", MASKS),
        ("model.pooling", POOLINGS),
        ("model.position_resampling", RESAMPLINGS),
        ("model.remat", REMAT),
        ("text.variant", VARIANTS),
        ("text.pool", POOLS),
        ("text.init", TEXT_INITS),
        ("init_from.source", SOURCES),
        ("optimizer.name", OPTIMIZERS),
        ("optimizer.schedule", SCHEDULES),
    ],
)
def test_texts_name_all_values(name, values):
    assert all(value in SETTINGS[name].text for value in values), (list(values), SETTINGS[name].text)


def test_what_may_change_is_said():
    assert SETTINGS["data.data_dir"].may_change == ("read", "resume")
    assert SETTINGS["model.width"].may_change == ()
    own = [
        field.name
        for section in reference.section_values(Config()).values()
        for field in dataclasses.fields(section)
        if not dataclasses.is_dataclass(getattr(section, field.name))
    ]
    assert len(SETTINGS) == len(own)


def test_help_prints_every_setting(run_here):
    code, out, err = run_here("train", "--help")
    assert code == 0 and not err
    assert all(f"--config.{name}={one.default}" in out for name, one in SETTINGS.items())
