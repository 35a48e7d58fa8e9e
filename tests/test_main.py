"""The command vit-registers: its help, its errors, and that it starts the programs."""

import runpy
import subprocess
import sys
from pathlib import Path

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


FIRST_LINES = [
    "from vit_registers import startup",
    'if __name__ == "__main__":',
    "    startup.end_on_interrupt()",
]
IMPORTED_FIRST = """
import __future__, collections.abc, runpy, signal, sys
before = set(sys.modules)
import vit_registers.startup
print(*sorted(set(sys.modules) - before))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_programs_handle_ctrl_c_before_they_import_anything_slow():
    """All programs import startup first; what it imports is the time in which ctrl-C shows a traceback."""
    root = Path(command.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", IMPORTED_FIRST], cwd=root, capture_output=True, text=True)
    assert done.stdout == "vit_registers vit_registers.errors vit_registers.startup\n", done.stderr
    for name in command.COMMANDS:
        text = (root / "vit_registers" / f"{name}.py").read_text()
        begin = [line for line in text.split('"""', 2)[2].splitlines() if line][:3]
        assert begin == FIRST_LINES, name
