"""Run cards: the config files that come with the package. They are found by name.

There is one copy, configs/ at the top of the repository, which a wheel has as vit_registers/run_cards/.
"""

import ast
import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from vit_registers.config.convert import nearest
from vit_registers.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "run_cards", _PACKAGE.parent / "configs")
_ARGUMENTS = re.compile(r"Arguments:\s*(.*?)\.?\s*$", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What a config file says about itself."""

    path: Path
    title: str  # the first line of its docstring
    about: str  # the rest of it
    arguments: str  # described in words, "" if it takes none
    defaults: dict[str, str]  # of its arguments, as Python literals
    has_sweep: bool


def card_paths() -> dict[str, Path]:
    """The config files of all run cards by name. Raises ConfigError if the package has none."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        raise ConfigError(f"the run cards are missing: there is no {_PLACES[0]}; install the package again")
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def find_config(given: str) -> Path:
    """The config file that `given` names: the run card of that name, or else a path.

    `given` has no argument. Raises ConfigError if there is no such file, with the nearest run card.
    """
    is_name = "/" not in given and not given.endswith(".py")
    cards = card_paths()
    if given in cards:
        return cards[given]
    path = Path(os.path.expanduser(given))
    if path.exists():
        return path
    if path.stem in cards and not is_name:
        raise ConfigError(f"{given}: there is no such file; the run card is {path.stem}")
    begin = re.match(r"\w+", given)
    if is_name and begin and begin[0] in cards:
        example = f"{begin[0]}:{given[begin.end() + 1 :]}"
        raise ConfigError(f"{given}: the arguments of a run card follow a colon, as in {example}")
    if is_name:
        hint = nearest(given, cards)
        hint += " " if hint.endswith("?") else "; "
        raise ConfigError(
            f"{given}: there is no such run card: {hint}`vit-registers configs` lists all, and a file of "
            "your own is given by its path, such as ./mine.py"
        )
    raise ConfigError(f"{given}: there is no such file")


def load_module(path: str) -> ModuleType:
    """The config file, a file whose name ends with .py, as a module."""
    spec = importlib.util.spec_from_file_location(f"config_file_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # its name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_card(path: Path) -> Card:
    """What the config file says about itself, read without running it."""
    tree = ast.parse(path.read_text())
    title, _, about = (ast.get_docstring(tree) or "").partition("\n")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    described = _ARGUMENTS.search(ast.get_docstring(functions["get_config"]) or "")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    parsers = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "parse_arg"]
    return Card(
        path=path,
        title=title,
        about=about.strip("\n"),
        arguments=" ".join(described[1].split()) if described else "",
        defaults={
            word.arg: ast.unparse(word.value) for call in parsers for word in call.keywords if word.arg
        },
        has_sweep="sweep" in functions,
    )
