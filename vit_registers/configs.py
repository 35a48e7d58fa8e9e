"""Lists the run cards: the config files that come with the package, which --config takes by name.

    vit-registers configs                     # all run cards with their arguments
    vit-registers configs digits              # its arguments with their defaults, and where the file is
    vit-registers configs digits --copy=mine.py     # a copy, to be changed: --config=mine.py

The same as python -m vit_registers.configs. NAME may also be the path of a config file of your own.
"""

from vit_registers import startup

if __name__ == "__main__":
    startup.end_on_interrupt()

from absl import flags


def define_flags() -> None:
    """Defines the flags of the program."""
    flags.DEFINE_string("copy", None, "Python file to write, a copy of the run card.")


NAME = startup.take_name() if __name__ == "__main__" else ""  # the other arguments are flags
startup.begin(__name__, define_flags)

import shlex
import shutil
import textwrap
from pathlib import Path

from vit_registers import cli
from vit_registers.config.cards import Card, card_paths, find_config, read_card
from vit_registers.errors import ConfigError

_WIDTH = 100


def list_cards() -> str:
    """All run cards, each with its title and its arguments."""
    cards = {name: read_card(path) for name, path in card_paths().items()}
    width = max(map(len, cards))
    blocks = [
        f"{name:<{width}}  {card.title}\n{_filled(', '.join(card.defaults), ' ' * (width + 2) + '  :')}"
        for name, card in cards.items()
    ]
    end = "As in --config=digits:registers=4. `vit-registers configs NAME` describes the arguments of one."
    return "\n".join([*blocks, "", end])


def describe_card(name: str, card: Card) -> str:
    """The docstring of a config file, its arguments with their defaults, and its path."""
    width = max(map(len, card.defaults), default=0)
    defaults = [f"    {key:<{width}}  {value}" for key, value in card.defaults.items()]
    given = name if name.isidentifier() else shlex.quote(name)
    parts = [
        card.title,
        card.about,
        "\n".join(["Arguments and their defaults:", *defaults]) if defaults else "It takes no arguments.",
        _filled(card.arguments, "    ") if card.arguments else "",
        f"It has a sweep: vit-registers sweep --config={given} --workdir=..." if card.has_sweep else "",
        f"File: {card.path}",
    ]
    return "\n\n".join(filter(None, parts))


def _filled(text: str, indent: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


def copy_card(source: Path, target: str) -> Path:
    """Copies a config file. Raises ConfigError if the target exists or is not a Python file."""
    path = Path(target).expanduser()
    if path.suffix != ".py":
        raise ConfigError(f"--copy={target}: give the name of a Python file, such as mine.py")
    if path.exists():
        raise ConfigError(f"--copy={target} exists: give another name")
    cli.writable_folder(str(path.parent), "--copy")
    shutil.copyfile(source, path)
    return path


def main(name: str) -> None:
    """The command line, after the name of the run card."""
    copy = flags.FLAGS.copy
    if not name:
        if copy is not None:
            raise ConfigError("--copy: name a run card first: vit-registers configs digits --copy=mine.py")
        print(list_cards())
        return
    name = name.partition(":")[0]
    path = find_config(name)
    if copy is not None:
        print(f"written: {copy_card(path, copy)}; --config={copy} takes it")
        return
    try:
        print(describe_card(name, read_card(path)))
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} is not a config file: {error}") from None


if __name__ == "__main__":
    cli.run(lambda: main(NAME))
