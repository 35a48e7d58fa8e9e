"""The parser of operation strings such as "inception_crop(area_min=0.2) | flip", shared by all loaders."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_registers.config import lookup, nearest
from vit_registers.errors import ConfigError


class Target(NamedTuple):
    """The images that a chain of operations has to deliver."""

    height: int
    width: int
    channels: int


class OpCall(NamedTuple):
    """One operation of a string: its name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parse(text: str, table: Mapping[str, Callable[..., Any]], *, where: str) -> list[OpCall]:
    """The operations that `text` names, in order; an empty text has none.

    `table` maps a name to a builder, whose first parameter is the Target and whose further
    parameters, all annotated, are what the string may set, by literals only. `where` is the setting
    named in errors. Raises ConfigError for anything that is not a chain of known operations.
    """
    if not text.strip():
        return []
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ConfigError(f"{where}={text!r}: want operations such as 'random_crop(4) | flip'") from None
    calls: list[OpCall] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        calls.append(_call(node.right, table, where))
        node = node.left
    calls.append(_call(node, table, where))
    return calls[::-1]


def build(
    text: str, table: Mapping[str, Callable[..., Any]], target: Target, *, where: str
) -> list[tuple[str, Any]]:
    """(name, built operation) of each operation in `text`; errors as in `parse` and from the builders."""
    built = []
    for call in parse(text, table, where=where):
        try:
            built.append((call.name, table[call.name](target, **call.arguments)))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return built


def _call(node: ast.expr, table: Mapping[str, Callable[..., Any]], where: str) -> OpCall:
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name):
        raise ConfigError(
            f"{where}: '{ast.unparse(node)}' is not an operation such as flip or random_crop(4)"
        )
    name = function.id
    builder = lookup(table, name, where)
    parameters = list(inspect.signature(builder).parameters.values())[1:]
    args, keywords = (node.args, node.keywords) if isinstance(node, ast.Call) else ([], [])
    if len(args) > len(parameters):
        names = ", ".join(p.name for p in parameters) or "none"
        raise ConfigError(f"{where}: {name} takes {len(parameters)} arguments at most ({names})")
    given = [(p.name, value) for p, value in zip(parameters, args, strict=False)]
    given += [(keyword.arg or "**", keyword.value) for keyword in keywords]
    arguments: dict[str, Any] = {}
    for key, value in given:
        parameter = next((p for p in parameters if p.name == key), None)
        if parameter is None:
            known = nearest(key, [p.name for p in parameters]) if parameters else "it takes none"
            raise ConfigError(f"{where}: {name} has no argument '{key}': {known}")
        if key in arguments:
            raise ConfigError(f"{where}: {name} is given '{key}' twice")
        arguments[key] = _literal(value, parameter, f"{where}: {name}({key}=...)")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ConfigError(f"{where}: {name} needs '{parameter.name}', as in {name}(256)")
    return OpCall(name, arguments)


def _literal(node: ast.expr, parameter: inspect.Parameter, where: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise ConfigError(f"{where}: '{ast.unparse(node)}' is not a plain value") from None
    kind = parameter.annotation
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where}: {value!r} is of type {type(value).__name__}: want {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {value}: want a finite number")
    return value
