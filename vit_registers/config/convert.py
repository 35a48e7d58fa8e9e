"""Strict conversion of the Config from and to ml_collections and JSON, and a config file's argument."""

import ast
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from vit_registers.config import checks
from vit_registers.config.objectives import RENAMED
from vit_registers.config.settings import ALTERNATIVES, Config
from vit_registers.errors import ConfigError

_MAX_SHOWN = 80  # characters of a value in a message
_MAX_LISTED = (
    50  # names in a message: all experiments and settings of a section, not all parameters of a model
)


def nearest(key: str, known: typing.Iterable[str]) -> str:
    """A hint for an error message: the nearest known name, or all of them; of many, the first ones."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if len(known) > _MAX_LISTED:
        return f"known: {', '.join(known[:10])}, ... ({len(known)} in all)"
    return f"known: {', '.join(known)}"


def suggestion(path: str) -> str:
    """A hint for an unknown setting: the nearest settings, of its section if there are similar ones.

    Names are compared by spelling, by initials ("lr" is learning_rate) and by words ("decay").
    """
    section, _, key = path.rpartition(".")
    if path in RENAMED:
        return f"it is now '{RENAMED[path]}'"
    if path in (sections := section_values(Config())):
        return f"it is a section, of {', '.join(field.name for field in dataclasses.fields(sections[path]))}"
    known = list(flatten(to_dict(Config())))
    if path in known:
        return f"did you mean '{path}'?"
    own = [name for name in known if name.startswith(f"{section}.")]
    # Tasks and text towers have settings of the same names as others, which are meant more often.
    of_training = [name for name in known if not name.startswith(("tasks.", "text."))]
    for names in (own, of_training, known):
        if found := _like(key, names):
            return f"did you mean {' or '.join(repr(name) for name in found[:3])}?"
    if own:
        return f"settings of {section}: {', '.join(name.rpartition('.')[2] for name in own)}"
    if close := difflib.get_close_matches(path, known, n=1, cutoff=0.75):  # the section is misspelt as well
        return f"did you mean '{close[0]}'?"
    return f"sections: {', '.join(to_dict(Config()))}"


def similar_settings(path: str) -> list[str]:
    """The settings that an unknown flag `path`, such as "lr" or "model.depth", may mean."""
    known = list(flatten(to_dict(Config())))
    return [path] if path in known else _like(path.rpartition(".")[2], known)


def section_values(values: Any, prefix: str = "") -> dict[str, Any]:
    """The sections within a Config or a section, as dataclasses by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(values):
        if dataclasses.is_dataclass(value := getattr(values, field.name)):
            found |= {f"{prefix}{field.name}": value, **section_values(value, f"{prefix}{field.name}.")}
    return found


def _like(key: str, names: list[str]) -> list[str]:
    last = {name: name.rpartition(".")[2] for name in names}
    initials = {name: "".join(part[:1] for part in last[name].split("_")) for name in names}
    close = difflib.get_close_matches(key, last.values(), n=1, cutoff=0.7 if len(key) > 3 else 0.75)
    return (
        [name for name in names if last[name] == key]
        or [name for name in names if len(key) > 1 and initials[name] == key]
        or [name for name in names if key in last[name].split("_")]
        or [name for name in names if close and last[name] == close[0]]
    )


def check_names(paths: typing.Iterable[str]) -> None:
    """Raises ConfigError with all dotted `paths` that are not settings, and the nearest setting of each."""
    known = flatten(to_dict(Config()))
    unknown = [path for path in dict.fromkeys(paths) if path not in known]
    if unknown:
        raise ConfigError(
            "; ".join(f"config.{path} is not a setting: {suggestion(path)}" for path in unknown)
        )


def lookup(table: Mapping[str, Any], key: str, where: str) -> Any:
    """table[key], or a ConfigError that names the setting `where` and the known keys."""
    if not isinstance(key, str):
        raise ConfigError(f"{where}={_shown(key)}: must be one of {', '.join(sorted(table))}")
    if key not in table:
        raise ConfigError(f"{where}='{key}' is unknown: {nearest(key, table)}")
    return table[key]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"


def _convert(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={_shown(value)}: must be a section of settings")
        return _convert_section(hint, value, where)
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, (tuple, list)) or (args[-1] is not ... and len(value) != len(args)):
            raise ConfigError(f"{where}={_shown(value)}: must be a tuple such as (224, 224)")
        return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} is an integer of {len(str(value))} digits: must be a float") from None
    if type(value) is not hint:
        kind = type(value).__name__
        raise ConfigError(f"{where}={_shown(value)} is of type {kind}: must be {hint.__name__}")
    return value


def _convert_section(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert(values[key], hints[key], f"{where}.{key}") for key in values})


def from_mapping(values: Mapping[str, Any], *, checked: Sequence[str] = checks.SECTIONS) -> Config:
    """The Config of a ConfigDict, or of a dict read from JSON.

    Raises ConfigError for an unknown key or a wrong type, and for all invalid values of the sections
    `checked` in one line. Runs of earlier versions may have values that this version refuses, so `checked`
    may be empty.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    if not isinstance(values, Mapping):
        raise ConfigError(f"the config is of type {type(values).__name__}: must be sections of settings")
    sections = section_values(Config())
    check_names(name for name in flatten(values) if name not in sections)
    return checks.check_config(_convert_section(Config, values, "config"), checked)


def from_saved(values: Mapping[str, Any], *, checked: Sequence[str] = ()) -> Config:
    """The Config of a config.json or of a checkpoint, which an earlier version may have written.

    Settings that were renamed (objectives.RENAMED) are read under their old names too. By default no values
    are checked: this version loads runs that it would not train. Errors as in from_mapping.
    """
    if not isinstance(values, Mapping):
        return from_mapping(values, checked=checked)
    flat = {RENAMED.get(name, name): value for name, value in flatten(values).items()}
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        put(nested, path, value)
    return from_mapping(nested, checked=checked)


def put(nested: dict[str, Any], path: str, value: Any) -> None:
    """Sets the dotted `path` of nested dicts, and creates sections that are missing."""
    *sections, key = path.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
    nested[key] = value


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
                # Flags take text unparsed. Other values are literals, so that None can be given.
                out[name] = config_dict.placeholder(str if str in typing.get_args(hint) else object)
                out[name] = value
            else:
                out[name] = value
        return out

    return section(config).lock()  # so that a misspelt name in a config file fails in its line


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {'model.num_registers': 4, ...}. An empty section is a value under its name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def override(
    values: Mapping[str, Any], overrides: Mapping[str, Any], *, checked: Sequence[str] = checks.SECTIONS
) -> Config:
    """The Config of `values` with dotted `overrides` such as {'model.num_registers': 4}.

    An override of one of several alternatives (settings.ALTERNATIVES) unsets the others. Values are checked
    after all overrides, as in from_mapping.
    """
    check_names(overrides)
    nested = to_dict(from_mapping(values, checked=()))
    for path, value in (dict(overrides) | _unset(overrides)).items():
        put(nested, path, value)
    return from_mapping(nested, checked=checked)


def _unset(overrides: Mapping[str, Any]) -> dict[str, None]:
    """None for each setting that is not overridden although one of its alternatives is."""
    return {
        other: None
        for names in ALTERNATIVES
        if any(overrides.get(name) is not None for name in names)
        for other in names
        if other not in overrides
    }


def split_arguments(text: str) -> list[str]:
    """The text split at commas outside parentheses."""
    return re.split(r",(?![^()]*\))", text)


def parse_arg(arg: str | None, **defaults: Any) -> Any:
    """The values in a config file's argument, as in `--config=digits:registers=4,mask=fractal`.

    Returns a namespace with the keys of `defaults`. A value has the type of its default: int and float are
    literals, str is not parsed, and bool is True, False, or the key alone for True. A comma between
    parentheses does not separate keys: mask=file(path='m.npy', sha256='...').
    """
    values, given = dict(defaults), set()
    for item in filter(None, split_arguments(arg or "")):
        key, equals, text = (part.strip() for part in item.partition("="))
        if key not in defaults:
            form = "" if equals else "; arguments are written name=value, joined by commas"
            raise ConfigError(f"config argument '{key}' is unknown: {nearest(key, defaults)}{form}")
        if key in given:
            raise ConfigError(f"config argument '{key}' is given twice: keep one")
        given.add(key)
        kind = type(defaults[key])
        if not equals and kind is not bool:
            raise ConfigError(
                f"config argument '{key}' has no value: write {key}=..., as in {key}={defaults[key]}"
            )
        if kind is str:
            values[key] = text
            continue
        try:
            value = True if kind is bool and not equals else ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: deep nesting
            value = text
        values[key] = _convert(value, kind, f"config argument '{key}'")
    return types.SimpleNamespace(**values)
