"""Parses settings that are names with arguments: "random_crop(4) | flip", "window(radius=2)"."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vit_registers.config.convert import lookup, nearest
from vit_registers.errors import ConfigError


class Call(NamedTuple):
    """A name and its arguments, in the order of the function's parameters."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def parse_calls(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    *,
    where: str,
    example: str,
    operator: type[ast.operator] = ast.BitOr,
) -> list[Call]:
    """The calls that `text` chains with "|" (`operator`), in order; none for an empty text.

    `table` maps a name to a function. The first parameter of a function is what it applies to. `text` sets
    its other parameters by literals; all of them are annotated.

    Raises ConfigError for anything that is not a chain of known names with their arguments. The message
    names the setting `where`, and gives `example` as valid text.
    """
    if not text.strip():
        return []
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: deep nesting
        raise ConfigError(f"{where}={text!r} cannot be parsed: write it as in {example!r}") from None
    calls: list[Call] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, operator):
        calls.append(_call(node.right, table, where, example))
        node = node.left
    calls.append(_call(node, table, where, example))
    return calls[::-1]


def parse_call(text: str, table: Mapping[str, Callable[..., Any]], *, where: str, example: str) -> Call:
    """The only call in `text`; see `parse_calls`. Raises ConfigError also for none and for several."""
    calls = parse_calls(text, table, where=where, example=example)
    if len(calls) != 1:
        raise ConfigError(f"{where}={text!r} has {len(calls)} names: give one, as in {example!r}")
    return calls[0]


def _call(node: ast.expr, table: Mapping[str, Callable[..., Any]], where: str, example: str) -> Call:
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name):
        raise ConfigError(
            f"{where}: '{ast.unparse(node)}' is not a name with arguments: write it as in {example!r}"
        )
    name = function.id
    parameters = list(inspect.signature(lookup(table, name, where)).parameters.values())[1:]
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
            raise ConfigError(
                f"{where}: {name} requires '{parameter.name}', as in {name}({parameter.name}=...)"
            )
    return Call(name, {p.name: arguments[p.name] for p in parameters if p.name in arguments})


def _literal(node: ast.expr, parameter: inspect.Parameter, where: str) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        raise ConfigError(f"{where}: '{ast.unparse(node)}' is not a literal, such as 2 or 0.5") from None
    kind = parameter.annotation
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not kind:
        raise ConfigError(f"{where}: {value!r} is of type {type(value).__name__}: must be {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{where}: {value}: must be finite")
    return value
