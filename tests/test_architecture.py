"""Rules for the package: what may import what, nothing heavy at import, every program has a help text."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.quick import parametrize_quick

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vit_registers"
ENTRY_POINTS = ("train", "evaluate", "analyze", "convert", "sweep", "tabulate", "prepare", "configs")

# Who may import whom, by room. "*" may import everything.
ALLOWED = {
    "errors": set(),
    "strict_json": set(),
    "digests": set(),
    "status": set(),
    "storage": {"errors", "status", "strict_json", "digests", "storage"},
    "config": {"errors", "config"},
    "models": {"errors", "digests", "config", "models"},
    "data": {"errors", "config", "storage", "data"},
    "runtime": {"errors", "status", "config", "runtime"},
    "objectives": {
        "errors",
        "config",
        "models",
        "data",
        "training.averages",
        "training.tables",
        "objectives",
    },
    "training": {"errors", "config", "models", "data", "objectives", "training"},
    "runs": {
        "storage",
        "errors",
        "status",
        "strict_json",
        "digests",
        "config",
        "models",
        "data",
        "objectives",
        "runtime",
        "training",
        "runs",
    },
    "evaluation": {
        "errors",
        "status",
        "digests",
        "strict_json",
        "config",
        "models",
        "data",
        "objectives",
        "training",
        "runtime",
        "evaluation",
    },
    "interop": {"errors", "strict_json", "config", "models", "interop"},
    "checkpoint_names": {"errors", "interop"},
    "model_card": {"errors", "config", "models", "interop", "analysis.report.markdown"},
    "conversion": {
        "storage",
        "config",
        "models",
        "runs",
        "runtime",
        "interop",
        "checkpoint_names",
        "loading",
        "model_card",
    },
    "loaded_model": {"errors", "config", "models", "data", "interop"},
    "loading": {
        "storage",
        "errors",
        "checkpoint_names",
        "loaded_model",
        "config",
        "models",
        "data",
        "objectives",
        "runtime",
        "training",
        "runs",
        "interop",
    },
    "image_text": {
        "storage",
        "errors",
        "checkpoint_names",
        "config",
        "interop",
        "loaded_model",
        "loading",
        "models",
        "runs",
        "runtime",
    },
    "text_readers": {"storage", "errors", "config", "data", "evaluation", "runs", "loading"},
    "run_conversion": {
        "storage",
        "errors",
        "cli",
        "checkpoint_names",
        "config",
        "conversion",
        "data",
        "image_text",
        "interop",
        "loading",
        "models",
        "objectives",
        "runs",
        "runtime",
        "text_readers",
        "training",
    },
    "fine_tuning": {
        "storage",
        "errors",
        "config",
        "models",
        "data",
        "objectives",
        "training",
        "runtime",
        "runs",
        "interop",
        "checkpoint_names",
        "loading",
    },
    "frozen_evaluation": {
        "storage",
        "errors",
        "status",
        "strict_json",
        "digests",
        "config",
        "data",
        "objectives",
        "evaluation",
        "training",
        "runs",
        "runtime",
        "loading",
        "text_readers",
        "analysis.file_names",
    },
    "task_command": {
        "errors",
        "digests",
        "data",
        "evaluation",
        "runs",
        "loading",
        "frozen_evaluation",
        "task_output",
    },
    "task_output": {"storage", "strict_json", "evaluation", "objectives", "runs"},
    "startup": {"errors", "status", "cli"},
    "cli": {"storage", "errors", "status", "startup", "config"},
    "processes": {"cli", "config", "runtime"},
    "recipes": {"errors", "config"},
    "recipes_dinov2": {"errors", "config", "recipes"},
    "analysis": {
        "storage",
        "errors",
        "status",
        "strict_json",
        "digests",
        "config",
        "models",
        "data",
        "runtime",
        "training",
        "runs",
        "evaluation",
        "interop",
        "checkpoint_names",
        "loading",
        "text_readers",
        "analysis",
    },
    "__init__": {"image_text", "loaded_model", "loading", "models", "interop", "config"},
    "train": {"*"},
    "evaluate": {"*"},
    "analyze": {"*"},
    "convert": {"*"},
    "sweep": {"*"},
    "tabulate": {"*"},
    "prepare": {"*"},
    "configs": {"*"},
    "__main__": {"*"},
}
FILES = sorted(PACKAGE.rglob("*.py"))
CARDS = sorted((PACKAGE.parent / "configs").glob("*.py"))


def _imports(path):
    """Modules of the package that a file imports, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("vit_registers."):
                yield name.removeprefix("vit_registers.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    allowed = ALLOWED[room]
    for name in _imports(path):
        is_allowed = "*" in allowed or any(name == a or name.startswith(f"{a}.") for a in allowed)
        is_room = any(
            a.startswith(f"{name}.") for a in allowed
        )  # `from room import module`: the module decides
        assert is_allowed or is_room, f"{room} imports {name}"


# What reads or writes run folders, and the calls there that are of something else: the checkout, weights of
# other code bases, folders of data, the description in a lock that is held.
OF_RUN_FOLDERS = (
    *sorted((PACKAGE / "runs").glob("*.py")),
    *(
        PACKAGE / f"{name}.py"
        for name in ("train", "sweep", "tabulate", "loading", "fine_tuning", "conversion")
    ),
    *(PACKAGE / f"{name}.py" for name in ("evaluate", "task_command", "task_output")),
)
_METHODS = {
    *("open", "exists", "is_dir", "is_file", "iterdir", "glob", "rglob", "stat", "mkdir", "rmdir", "unlink"),
    *("rename", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "expanduser"),
}
NOT_OF_RUN_FOLDERS = {
    "runs/results.py": {"Path(__file__)"},
    "runs/trackers.py": {"os.environ"},
    "sweep.py": {"os.write(lock"},
    "tabulate.py": {"Path(values.csv)", "path.open('w'"},
    "loading.py": {"Path(path)", "Path(path).expanduser("},
    "fine_tuning.py": {"Path(path)", "Path(path).expanduser("},
    "conversion.py": {"Path(local)", "Path(local).expanduser("},
    "evaluate.py": {"Path(name.path)", "Path(run)"},
    "task_command.py": {"Path(data_dir)"},
}


def _file_calls(tree):
    """The source of each call of the file system."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        first, _, last = name.rpartition(".")
        is_method = bool(first) and first not in ("files", "objects", "self") and last in _METHODS
        is_function = name in ("open", "Path") or name.startswith(("os.", "shutil.", "tempfile.", "pathlib."))
        if is_method or is_function:
            yield ast.unparse(node)


@pytest.mark.parametrize("path", OF_RUN_FOLDERS, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_run_folders_are_opened_by_the_storage_package_only(path):
    allowed = NOT_OF_RUN_FOLDERS.get(str(path.relative_to(PACKAGE)), set())
    calls = [*_file_calls(ast.parse(path.read_text()))]
    found = [call for call in calls if not any(part in call for part in allowed)]
    assert not found, "use vit_registers/storage/"
    assert all(any(part in call for call in calls) for part in allowed - {"os.environ"}), (
        "not needed any more"
    )


def test_files_and_functions_stay_short_and_there_is_no_utils():
    for path in (*FILES, *CARDS):
        text = path.read_text()
        assert path.stem != "utils"
        assert text.count("\n") <= 320, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"


def test_public_functions_say_what_comes_back():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


IN_MEMORY = """
import os, sys, tempfile
del os.environ["JAX_COMPILATION_CACHE_DIR"]
import vit_registers
from vit_registers import config as c
from vit_registers.models.vit import ViT
from flax import nnx
ViT(c.Model(width=16, depth=1, num_heads=2, patch_size=4, image_size=(8, 8)), rngs=nnx.Rngs(0))
assert "tensorflow" not in sys.modules, "model"
from vit_registers.train import train
sys.path.insert(0, "configs")
import digits
config = c.override(digits.get_config("registers=2,steps=3"), {"optimizer.warmup_steps": 1, "model.depth": 1})
with tempfile.TemporaryDirectory() as run:
    train(config, run)
    model = vit_registers.load(run)
    assert model.layout.num_registers == 2
assert "tensorflow" not in sys.modules, "training"
import jax
assert jax.config.jax_compilation_cache_dir is None  # programs turn it on, not the functions that they call
print("none")
"""


@pytest.mark.slow
def test_no_tensorflow_after_importing_building_training_in_memory_and_loading():
    done = subprocess.run([sys.executable, "-c", IN_MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["none"], done.stderr


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, vit_registers; print({'jax', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


HEAVY = {
    "jax",
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "scipy",
    "sklearn",
}


def _start(name, *arguments):
    """The finished program, its messages, and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", f"vit_registers.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return done, [line for line in lines if not line.startswith("import time:")], imported


@parametrize_quick("name", ENTRY_POINTS, number=2)
def test_every_entry_point_answers_help_before_its_slow_imports(name):
    done, messages, imported = _start(name, "--help")
    assert done.returncode == 0 and not messages, messages
    assert f"python -m vit_registers.{name}" in done.stdout
    assert "absl.flags" in imported and not HEAVY & imported


@parametrize_quick("name", ENTRY_POINTS, number=2)
def test_errors_of_flags_come_before_the_slow_imports(name):
    done, messages, imported = _start(name, "--no_such_flag=1")
    assert done.returncode == 2 and len(messages) == 1 and "no_such_flag" in messages[0], messages
    assert not HEAVY & imported
