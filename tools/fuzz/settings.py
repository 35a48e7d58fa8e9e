"""Single random edits of config values, each set on the command line of a short training run."""

import dataclasses
import json
import math
import random
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.fuzz import programs
from vit_registers.config import Config, flatten, to_dict

BASE = {
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 32,
    "data.batch_size": 16,
    "data.eval_batch_size": 360,
    "optimizer.warmup_steps": 1,
    "run.eval_every_steps": 2,
    "checkpoint.every_steps": 2,
}
# Settings that determine the duration; a long duration is not a hang.
_UNBOUNDED = ("run.total_steps", "run.total_epochs", "data.eval_split", "optimizer.accumulation_steps")

_INTEGERS = (-(10**18), -2, -1, 0, 1, 2, 3, 5, 7, 64, 1000, 2**31, 2**63, 10**20)
_FLOATS = (
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1.0",
    "0.0",
    "1e-300",
    "1e-12",
    "0.5",
    "0.999",
    "1.0",
    "2.0",
    "1e30",
)
_TEXTS = (
    "",
    " ",
    "x",
    "None",
    "none",
    "true",
    "0",
    "-1",
    "a/b",
    "../x",
    "é",
    "a,b",
    "(",
    "x" * 3000,
    "digits",
)


def setting_types(settings: type, prefix: str = "") -> dict[str, Any]:
    """{setting: its type} of a settings class, with those of nested classes as section.setting."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(settings).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= setting_types(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = hint
    return found


def edits(number: int, seed: int) -> Iterator[tuple[str, str]]:
    """(setting, value as on the command line), at random, determined by the seed."""
    rng = random.Random(seed)
    hints, defaults = setting_types(Config), flatten(to_dict(Config()))
    for _ in range(number):
        name = rng.choice(sorted(hints))
        yield name, _value(rng, name, hints[name], defaults[name])


def _value(rng: random.Random, name: str, hint: Any, default: Any) -> str:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in options and rng.random() < 0.15:
        return "None"
    kind = options[0]
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items = [_plain(rng, name, inner, None) for _ in range(rng.choice((0, 1, 2, 3, 4)))]
        return f"({', '.join(map(repr, items) if inner is str else items)}{',' * (len(items) == 1)})"
    if rng.random() < 0.1:  # of another type
        kind = rng.choice((int, float, str, bool))
    return _plain(rng, name, kind, default)


def _plain(rng: random.Random, name: str, kind: type, default: Any) -> str:
    if kind is bool:
        return rng.choice(("True", "False", "1", "maybe"))
    if kind is str:
        return rng.choice((*_TEXTS, *([f"{default}x", str(default).upper()] if default else [])))
    if name in _UNBOUNDED:
        return rng.choice(("-1", "0", "1", "3", "nan", "inf"))
    if kind is int:
        return str(rng.choice(_INTEGERS))
    near = (str(default), str(default * 1.5)) if isinstance(default, float) else ()
    return rng.choice((*_FLOATS, *near))


def check(name: str, value: str, folder: Path) -> str:
    """Trains with one edited setting. Returns "refused", "trained", "timed out" or the fault."""
    given = {f"config.{key}": text for key, text in (BASE | {name: value}).items()}
    log = folder / "log"
    ended = programs.run(
        "train",
        "--config=configs/digits.py:steps=4",
        f"--workdir={folder / 'run'}",
        *(f"--{key}={text}" for key, text in given.items()),
        log=log,
    )
    # A first step that takes longer than this limit ends the run with this message.
    if ended.code == 3 and "run.hang_timeout_s" in ended.err and ended.err.strip().count("\n") == 0:
        return "timed out"
    if ended.fault is not None:
        return f"fault: {ended.fault}"
    if ended.code == 2:
        return "refused"
    if not (folder / "run" / "result.json").exists():
        return "fault: exit code 0 without result.json"
    try:
        result = json.loads((folder / "run" / "result.json").read_text(), parse_constant=_refuse)
    except ValueError as error:
        return f"fault: result.json {error}"
    numbers = [value for value in result["metrics"].values() if value is not None]
    if not all(map(math.isfinite, numbers)):
        return "fault: a metric is not finite"
    if None in result["metrics"].values() and "not finite" not in ended.out + ended.err:
        return "fault: a metric is null without a message"
    return "trained"


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}")
