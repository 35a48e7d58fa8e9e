"""The installed package: what the wheel holds, and that it runs from another folder."""

import configparser
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import vit_registers
from tools.requirements import requirements
from vit_registers.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""
CARDS = "run_cards"


def test_all_packages_are_installed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "vit_registers").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders} | {f"vit_registers.{CARDS}"}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == expected


def test_requirements_are_those_of_pyproject():
    assert (ROOT / "requirements.txt").read_text() == requirements(), "python -m tools.requirements"


def test_the_base_is_without_tensorflow():
    names = " ".join(SETTINGS["project"]["dependencies"])
    assert not any(name in names for name in ("tensorflow", "clu", "array_record", "torch"))
    assert all(name in requirements() for name in ("tensorflow-cpu", "tensorflow-datasets", "jax", "clu"))


def test_every_program_is_a_command():
    programs = {
        path.stem for path in (ROOT / "vit_registers").glob("*.py") if "startup.begin(" in path.read_text()
    }
    assert set(COMMANDS) == programs - {"startup"}


def _build(kind, source, out):
    """The path of the sdist or wheel of the folder `source`."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that is built of the sdist, which is built of the files of the repository."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    for name in ("vit_registers", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    with tarfile.open(_build("sdist", source, place)) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    return _build("wheel", unpacked, place)


@pytest.mark.slow
def test_the_wheel_holds_code_run_cards_and_published_numbers_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = configparser.ConfigParser()
        entry_points.read_string(
            archive.read(f"vit_registers-{vit_registers.__version__}.dist-info/entry_points.txt").decode()
        )
        card = archive.read(f"vit_registers/{CARDS}/digits.py")
    files = [path for path in (ROOT / "vit_registers").rglob("*") if path.suffix in (".py", ".csv")]
    expected = {str(path.relative_to(ROOT)) for path in files}
    expected |= {f"vit_registers/{CARDS}/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert names == expected
    assert dict(entry_points["console_scripts"]) == {"vit-registers": "vit_registers.__main__:main"}
    assert card == (ROOT / "configs/digits.py").read_bytes()


@pytest.mark.slow
def test_the_wheel_runs_from_another_folder(wheel, tmp_path, quick):
    place = tmp_path / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        place,
        wheel,
    ]
    subprocess.run(command, check=True, cwd=tmp_path)

    def run(*arguments):
        program = [sys.executable, str(place / "bin/vit-registers"), *arguments]
        environment = quick() | {"PYTHONPATH": str(place)}
        return subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run("--version").stdout == f"vit-registers {vit_registers.__version__}\n"
    shown = run("configs", "digits")
    assert shown.returncode == 0 and f"File: {place}/vit_registers/{CARDS}/digits.py" in shown.stdout
    assert run("configs", "digits", "--copy=mine.py").returncode == 0
    done = run("train", "--config=mine.py:registers=2,steps=1", "--workdir=run", "--config.model.depth=1")
    assert done.returncode == 0, done.stderr
    assert "the run card is digits" in run("train", "--config=configs/digits.py", "--workdir=run").stderr
