"""Checks settings against the table of valid values (rules.py).

Code that uses several settings checks how they relate, except for the number of channels, which is checked
here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vit_registers.config.rules import RULES, UNSET
from vit_registers.config.settings import Config
from vit_registers.errors import ConfigError

SECTIONS = tuple(field.name for field in dataclasses.fields(Config))


def _problem(name: str, value: Any) -> str | None:
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    condition = next(filter(None, map(RULES[name], values)), None)
    if condition is None:
        return None
    return f"{name}={value!r}: must be " + ", or ".join(filter(None, (condition, UNSET.get(name))))


def check_value(name: str, value: Any) -> None:
    """Raises ConfigError if the value is invalid for the setting `name`, such as "run.seed"."""
    if problem := _problem(name, value):
        raise ConfigError(problem)


def _problems(section: str, settings: Any) -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(settings):
        name, value = f"{section}.{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += _problems(name, value)
        elif name in RULES and (problem := _problem(name, value)):
            found.append(problem)
    return found


def check_section(section: str, settings: Any) -> None:
    """Raises ConfigError with all invalid values of a section, such as "model" with a Model."""
    if problems := _problems(section, settings):
        raise ConfigError("; ".join(problems))


def check_config(config: Config, sections: Sequence[str] = SECTIONS) -> Config:
    """The config. Raises ConfigError with all invalid values of `sections`, in one line."""
    problems = [line for section in sections for line in _problems(section, getattr(config, section))]
    if "data" in sections:
        channels, data = config.model.channels, config.data
        problems += [
            f"data.{name}={values!r}: must have one value for each channel, and model.channels={channels}"
            for name, values in (("mean", data.mean), ("std", data.std))
            if len(values) != channels
        ]
    if problems:
        raise ConfigError("; ".join(problems))
    return config
