"""Strict conversion of the Config from and to ml_collections, JSON and a config file's compact argument."""

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from vit_registers.config import checks
from vit_registers.config.core import Config
from vit_registers.errors import ConfigError


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """A hint for an error message: the nearest known name, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def lookup(table: Mapping[str, Any], key: str, where: str) -> Any:
    """table[key], or a ConfigError that names the setting `where` and lists what there is."""
    if key not in table:
        raise ConfigError(f"{where}='{key}' is unknown: {nearest(key, table)}")
    return table[key]


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: want a section of settings")
        return _convert_section(hint, value, where)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, (tuple, list)) or (args[-1] is not ... and len(value) != len(args)):
            raise ConfigError(f"{where}={value!r}: want a tuple such as (224, 224)")
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}={value!r} is of type {type(value).__name__}: want {hint.__name__}")
    return value


def _convert_section(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{where}.{key} is not a setting: {nearest(key, hints)}")
    return cls(**{key: _convert(values[key], hints[key], f"{where}.{key}") for key in values})


def from_mapping(values: Mapping[str, Any], *, checked: Sequence[str] = checks.SECTIONS) -> Config:
    """The Config of a ConfigDict, or of a dict read from JSON.

    Raises ConfigError for a wrong key or type, and in one line for all values that cannot be, in the
    sections `checked`. The config of a run that was trained earlier needs no check of its values.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return checks.check(_convert_section(Config, values, "config"), checked)


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of plain values, for JSON."""
    return dataclasses.asdict(config)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The config as an ml_collections.ConfigDict, so that flags can override every setting."""

    def section(values: Any) -> ml_collections.ConfigDict:
        out = ml_collections.ConfigDict()
        for name, hint in typing.get_type_hints(type(values)).items():
            value = getattr(values, name)
            if dataclasses.is_dataclass(value):
                out[name] = section(value)
            elif isinstance(hint, types.UnionType):
                # Text is taken as it stands; the rest as a literal, so that None can be given too.
                out[name] = config_dict.placeholder(str if str in typing.get_args(hint) else object)
                out[name] = value
            else:
                out[name] = value
        return out

    return section(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {'model.num_registers': 4, ...}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def override(
    values: Mapping[str, Any], overrides: Mapping[str, Any], *, checked: Sequence[str] = checks.SECTIONS
) -> Config:
    """The Config of `values` with dotted `overrides` such as {'model.num_registers': 4} put in.

    Values are checked as by from_mapping, when all overrides are in.
    """
    nested = to_dict(from_mapping(values, checked=()))
    for path, value in overrides.items():
        *sections, key = path.split(".")
        node = nested
        for section in sections:
            if not isinstance(node.get(section), dict):
                raise ConfigError(f"config.{path} is not a setting: no section '{section}'")
            node = node[section]
        node[key] = value
    return from_mapping(nested, checked=checked)


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """The compact argument of a config file, `--config=configs/digits.py:registers=4,mask=fractal`.

    Returns a namespace with the keys of `defaults`; a value has the type of its default (int and
    float by literal, str as it stands, bool as True or False, or True when only the key is given).
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, equals, text = item.partition("=")
        if key not in defaults:
            raise ConfigError(f"config argument '{key}' is unknown: {nearest(key, defaults)}")
        kind = type(defaults[key])
        if kind is str:
            values[key] = text
            continue
        try:
            value = True if kind is bool and not equals else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        values[key] = _convert(value, kind, f"config argument '{key}'")
    return types.SimpleNamespace(**values)
