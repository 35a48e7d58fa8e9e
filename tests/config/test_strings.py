"""Settings that are names with arguments: what is parsed, and the errors for what is not."""

import pytest

from vit_registers.config.strings import Call, parse_call, parse_calls
from vit_registers.data.ops.strings import Target, build
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
def test_strings_are_parsed(text, expected):
    assert parse_calls(text, TABLE, where="data.train_ops", example="scale(3)") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("skale", "data.train_ops='skale' is unknown: did you mean 'scale'?"),
        ("turn(3)", "data.train_ops='turn' is unknown: known: need, scale"),
        ("scale(faktor=3)", "scale has no argument 'faktor': did you mean 'factor'?"),
        ("scale(3, factor=3)", "scale is given 'factor' twice"),
        ("scale(1, 2, 3)", "scale takes 2 arguments at most (factor, steps)"),
        ("scale('3')", "scale(factor=...): '3' is of type str: must be float"),
        ("scale(steps=1.5)", "1.5 is of type float: must be int"),
        ("scale(steps=True)", "True is of type bool: must be int"),
        ("scale(open('x'))", "is not a literal"),
        ("scale(**{'factor': 1})", "scale has no argument '**'"),
        ("scale(1e400)", "scale(factor=...): inf: must be finite"),
        ("scale(-1)", "data.train_ops: scale: factor=-1.0: want > 0"),
        ("need", "need requires 'size', as in need(size=...)"),
        ("scale |", "cannot be parsed: write it as in 'random_crop(4) | flip'"),
        ("scale + need(3)", "is not a name with arguments"),
        ("scale(\0)", "cannot be parsed"),
        ("(" * 1000, "cannot be parsed"),
        ("scale({[]: 1})", "is not a literal"),
        (f"scale({10**400})", "scale(factor=...): inf: must be finite"),
        ("a.b(3)", "is not a name with arguments"),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scale", "scale"),
        ("scale( )", "scale"),
        ("scale(steps=2, factor=.5)", "scale(factor=0.5, steps=2)"),
        (" need(7)", "need(size=7)"),
    ],
)
def test_a_call_is_written_with_names_in_the_order_of_the_parameters(text, expected):
    call = parse_call(text, TABLE, where="x", example="need(3)")
    assert str(call) == expected
    assert parse_call(str(call), TABLE, where="x", example="need(3)") == call
    assert isinstance(call, Call)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("scale | need(3)", 2)])
def test_one_call_is_one(text, count):
    with pytest.raises(ConfigError, match=f"has {count} names: give one, as in"):
        parse_call(text, TABLE, where="x", example="need(3)")
