"""The command vit-registers: its help, its errors, and that it starts the programs."""

import runpy
import sys

import pytest

from vit_registers import __main__ as command
from vit_registers import __version__


@pytest.fixture
def answer(monkeypatch, capsys):
    """answer("train", ...) -> (exit code, standard output, standard error) of the command."""

    def answer(*arguments):
        monkeypatch.setattr(sys, "argv", ["vit-registers", *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return answer


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--help",), 0), (("-h",), 0), (("help",), 0)])
def test_the_help_names_every_command(answer, arguments, code):
    found, out, err = answer(*arguments)
    assert found == code and not err and all(f"    {name} " in out for name in command.COMMANDS)


def test_the_version(answer):
    assert answer("--version") == (0, f"vit-registers {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "'trian' is not a command: did you mean 'train'?"),
        (("frobnicate",), "'frobnicate' is not a command: known: analyze, configs"),
        (("--config=digits",), "--config=digits comes before the command: name one first"),
        (("caf\udce9",), "is not a command"),
        (("",), ""),
    ],
)
def test_errors_are_one_line(answer, arguments, message):
    code, _, err = answer(*arguments)
    assert code == 2 and message in err and err.count("\n") == (1 if message else 0)


def test_the_command_starts_the_program_as_python_does(answer, monkeypatch):
    started = []
    monkeypatch.setattr(
        runpy, "run_module", lambda *args, **words: started.append((args, words, sys.argv[1:]))
    )
    answer("train", "--help")
    assert started == [(("vit_registers.train",), {"run_name": "__main__", "alter_sys": True}, ["--help"])]
