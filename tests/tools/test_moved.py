"""The old names of commands answer with the new ones."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = sorted(
    path for path in (ROOT / "tools").glob("*.py") if "from tools.moved import answer" in path.read_text()
)


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_an_old_command_names_a_new_one_that_is_there(path):
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{path.stem}", "--x"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    new = done.stderr.split("python -m ")[-1].strip()
    assert (ROOT / new.replace(".", "/")).with_suffix(".py").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("launch_*.sh")), ids=lambda path: path.stem)
def test_an_old_script_names_a_new_one_that_is_there(path):
    done = subprocess.run([path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    new = done.stderr.split(": ")[-1].strip()
    if new.startswith("python -m "):
        new = new.removeprefix("python -m ").replace(".", "/") + ".py"
    assert (ROOT / new).is_file()
