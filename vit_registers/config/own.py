"""Configs of one's own: a run card with overrides, and a config as the text of a config file."""

import ast
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from vit_registers.config.cards import find_config, load_module, read_card
from vit_registers.config.convert import (
    check_names,
    flatten,
    from_mapping,
    nearest,
    override,
    section_values,
    split_arguments,
    to_dict,
)
from vit_registers.config.settings import Config
from vit_registers.errors import ConfigError, UserError

_Build = Callable[[Mapping[str, Any]], dict[str, Any]]  # arguments of a run card -> settings by dotted name


def derive_config(card: str, overrides: Mapping[str, Any]) -> Config:
    """The config of a run card or config file, NAME or NAME:ARGUMENT, with overrides.

    An override is an argument of the run card ({"steps": 500}), a setting ({"run.total_steps": 500}) or a
    section of settings ({"run": {"total_steps": 500}}). A setting that is the value of an argument is set by
    this argument, so that what the run card derives from it follows, such as the warm-up of a length. Other
    overrides set one setting each. Raises ConfigError.
    """
    if not isinstance(card, str) or not card:
        raise ConfigError(f"{card!r} is no config: give the name of a run card, or the path of a config file")
    name, _, text = card.partition(":")
    path = find_config(name)
    try:
        defaults = {key: _literal(value) for key, value in read_card(path).defaults.items()}
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        reason = "it defines no get_config" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path} is not a config file: {reason}") from None
    get_config = load_module(str(path)).get_config
    arguments, settings = _sorted(overrides, defaults, card)

    def build(given: Mapping[str, Any]) -> Any:
        own = ",".join(f"{key}={value}" for key, value in given.items())
        return get_config(",".join(filter(None, (text, own))) or None)

    def build_flat(given: Mapping[str, Any]) -> dict[str, Any]:
        return flatten(to_dict(from_mapping(build(given), checked=())))

    for setting, value in settings.items():
        for key, given in arguments.items():
            probes = (defaults[key], given, value)
            if given != value and all(_is_set_by(setting, key, one, build_flat, arguments) for one in probes):
                raise ConfigError(
                    f"{key}={given!r} and {setting}={value!r} are the same setting of {name}: "
                    "give one of them"
                )
    free = {key: value for key, value in defaults.items() if f"{key}=" not in text and key not in arguments}
    found = True
    while found:  # again after each find, because an argument may have an effect only beside another one
        found = False
        for setting, value in settings.items():
            key = _argument_of(setting, value, free, functools.partial(_with, build_flat, arguments))
            if key is not None:
                arguments, found = {**arguments, key: value}, True
                del free[key]
    return override(build(arguments), settings)


def _with(build: _Build, arguments: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return build({**arguments, **more})


def _is_set_by(setting: str, key: str, value: Any, build: _Build, arguments: Mapping[str, Any]) -> bool:
    """Whether the argument `key` of the run card gives the setting its value."""
    try:
        return bool(build({**arguments, key: value})[setting] == value)
    except (UserError, KeyError):  # a value that the run card refuses
        return False


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:  # a default that is computed
        return None


def _sorted(
    overrides: Mapping[str, Any], defaults: Mapping[str, Any], card: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of the run card, settings by dotted name). Raises ConfigError for a name that is neither."""
    sections = section_values(Config())
    arguments: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            _add(settings, flatten(value, f"{name}."))
        elif "." in name or (name in sections and name not in defaults):
            _add(settings, {name: value})
        elif name in defaults:
            if isinstance(value, str) and len(split_arguments(value)) > 1:
                raise ConfigError(f"{name}={value!r}: a comma begins another argument: give this one apart")
            arguments[name] = value
        else:
            raise ConfigError(f"{card} has no argument '{name}': {nearest(name, [*defaults, *sections])}")
    check_names(settings)
    return arguments, settings


def _add(settings: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds settings. Raises ConfigError for one that is there already with another value."""
    for name, value in more.items():
        if settings.setdefault(name, value) != value:
            raise ConfigError(f"{name} is given twice, as {settings[name]!r} and {value!r}: give one of them")


def _argument_of(setting: str, value: Any, free: Mapping[str, Any], build: _Build) -> str | None:
    """The argument among `free` ({name: default}) whose value is that of the setting; None if there is none.

    It must be so for its default and for `value`, and if this is a number, for the next one too.
    """
    probes = (value, value + 1) if type(value) in (int, float) else (value,)
    for name, default in free.items():
        if type(value) is not type(default) and not (type(value) is int and type(default) is float):
            continue
        try:
            now = build({})[setting]
            is_default = now == default or (now is None and not default)
            if is_default and now != value and all(build({name: one})[setting] == one for one in probes):
                return name
        except UserError:  # the run card refuses the value; it is then refused as an override
            continue
    return None


def config_text(config: Config, title: str) -> str:
    """A config file in Python that gives `config`, with all settings; `title` is its docstring."""
    names = sorted(
        {type(config), *map(type, section_values(config).values())}, key=lambda kind: kind.__name__
    )
    imports = "".join(f"    {kind.__name__},\n" for kind in names)
    return (
        f'"""{title}"""\n\n'
        f"from vit_registers.config import (\n{imports}    parse_arg,\n    to_config_dict,\n)\n\n\n"
        f"def get_config(arg=None):\n    parse_arg(arg)  # takes no arguments\n"
        f"    config = {_expression(config, '    ')}\n    return to_config_dict(config)\n"
    )


def _expression(values: Any, indent: str) -> str:
    if not dataclasses.is_dataclass(values):
        return repr(values)
    inner = f"{indent}    "
    fields = "".join(
        f"{inner}{field.name}={_expression(getattr(values, field.name), inner)},\n"
        for field in dataclasses.fields(values)
    )
    return f"{type(values).__name__}(\n{fields}{indent})"
