"""The command vit-registers, which starts the programs of this package.

    vit-registers COMMAND [--flag=value ...]    the same as python -m vit_registers.COMMAND
    vit-registers COMMAND --help

--config takes the name of a run card, such as digits, or the path of a config file.
"""

import os

try:
    from vit_registers import startup

    if __name__ == "__main__":
        startup.end_on_interrupt()
    import runpy
    import sys

    from vit_registers import __version__
except KeyboardInterrupt:  # before the handler is set; the installed command sets it in `main`
    os.write(2, b"error: interrupted\n")
    os._exit(130)  # errors.INTERRUPTED, which may not be imported yet

COMMANDS = {
    "train": "train a model, or resume a run",
    "evaluate": "compute the metrics of a checkpoint",
    "analyze": "the papers' experiments on checkpoints and images",
    "convert": "weights of other code bases to run folders, and models to other formats",
    "sweep": "train all runs of a config's grid",
    "tabulate": "print the table of a sweep",
    "prepare": "download and prepare a data set of TFDS",
    "configs": "list the run cards, which --config takes, and their arguments",
}
_FIRST = "vit-registers train --config=digits:registers=4 --workdir=runs/digits"


def main() -> None:
    """The command line."""
    startup.end_on_interrupt()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"vit_registers.{first}", run_name="__main__", alter_sys=True)
    elif first == "--version":
        print(f"vit-registers {__version__}")
    elif first in ("", "help", "--help", "-h", "--helpfull"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"    {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"{__doc__}\nCommands:\n{commands}\n\nBegin with: {_FIRST}", flush=True)
        sys.exit(0 if first else 2)
    else:
        _refuse(first)


def _refuse(first: str) -> None:
    from vit_registers import cli  # imported here, as it takes a moment
    from vit_registers.config import nearest

    if first.startswith("-"):
        cli.fail(ValueError(f"{first} comes before the command: name one first, as in {_FIRST}"))
    shown = ascii(first) if not first.isprintable() else f"'{first}'"
    cli.fail(ValueError(f"{shown} is not a command: {nearest(first, COMMANDS)}"))


if __name__ == "__main__":
    main()
