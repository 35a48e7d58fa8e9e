"""Operation strings: what is read, and what is said about what cannot be."""

import pytest

from vit_registers.data.ops.strings import Target, build, parse
from vit_registers.errors import ConfigError


def scale(target, factor: float = 2.0, steps: int = 1):
    if factor <= 0:
        raise ConfigError(f"scale: factor={factor}: want > 0")
    return target, factor, steps


def need(target, size: int):
    return target, size


TABLE = {"scale": scale, "need": need}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("scale", [("scale", {})]),
        ("scale()", [("scale", {})]),
        ("scale(3) | need(5)|scale", [("scale", {"factor": 3.0}), ("need", {"size": 5}), ("scale", {})]),
        ("scale(steps=2, factor=.5)", [("scale", {"steps": 2, "factor": 0.5})]),
    ],
)
def test_strings_are_read(text, expected):
    assert parse(text, TABLE, where="data.train_ops") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skale", "data.train_ops='skale' is unknown: did you mean 'scale'?"),
        ("turn(3)", "data.train_ops='turn' is unknown: known: need, scale"),
        ("scale(faktor=3)", "scale has no argument 'faktor': did you mean 'factor'?"),
        ("scale(3, factor=3)", "scale is given 'factor' twice"),
        ("scale(1, 2, 3)", "scale takes 2 arguments at most (factor, steps)"),
        ("scale('3')", "scale(factor=...): '3' is of type str: want float"),
        ("scale(steps=1.5)", "1.5 is of type float: want int"),
        ("scale(steps=True)", "True is of type bool: want int"),
        ("scale(open('x'))", "is not a plain value"),
        ("scale(**{'factor': 1})", "scale has no argument '**'"),
        ("scale(1e400)", "scale(factor=...): inf: want a finite number"),
        ("scale(-1)", "data.train_ops: scale: factor=-1.0: want > 0"),
        ("need", "need needs 'size', as in need(256)"),
        ("scale |", "want operations such as"),
        ("scale + need(3)", "is not an operation"),
        ("a.b(3)", "is not an operation"),
    ],
)
def test_bad_strings_are_explained(text, message):
    with pytest.raises(ConfigError) as error:
        build(text, TABLE, Target(8, 8, 3), where="data.train_ops")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_builders_get_the_target():
    target = Target(4, 5, 3)
    assert build("need(7)", TABLE, target, where="x") == [("need", (target, 7))]
