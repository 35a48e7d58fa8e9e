"""The fuzzer of settings reaches every setting."""

from tools.fuzz.settings import edits, setting_types
from vit_registers.config import Config, flatten, to_dict


def test_every_setting_has_a_type_and_an_edit():
    settings = flatten(to_dict(Config())).keys()
    assert setting_types(Config).keys() == settings
    assert {name for name, _ in edits(5000, seed=0)} == settings
