"""What a program that writes a new run, or another format, may write over: nothing of a run."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vit_registers.errors import CheckpointError
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.runs.run_lock import lock_holder

_NOT_IN_PATHS = ("*", "?", "[", "\\")

# What only run folders have. config.json is in folders of other formats too.
_OF_RUNS = ("checkpoints", "metrics.jsonl", "result.json", "parameters.txt")
_SECTIONS = {"model", "data", "optimizer", "run"}  # of a run's config.json


def _is_run_config(path: Path) -> bool | None:
    """Whether a config.json is that of a run; None where there is none, or it is not a JSON object."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return config.keys() >= _SECTIONS if isinstance(config, dict) else None


def _find_part_of_run(folder: Path) -> str | None:
    """The name of something in a folder that belongs to a run; None where there is nothing."""
    for name in _OF_RUNS:
        if os.path.lexists(folder / name):
            return name
    return "config.json" if _is_run_config(folder / "config.json") else None


def _is_same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def check_output(output: str, source: str, *, target: str) -> None:
    """Raises CheckpointError where to write `output` would change `source`, a run, or an existing file.

    `target` is the format. An earlier export to transformers, which is a folder, may be written over.
    """
    path = Path(output).expanduser()
    if _is_same(path, Path(source).expanduser()):
        raise CheckpointError(f"{output} is what is read: give another --output")
    for parent in Path(os.path.realpath(path)).parents:
        if parent.name == "checkpoints" and list_steps(str(parent.parent)):
            raise CheckpointError(f"{output} is among the checkpoints of a run: give another --output")
    part = _find_part_of_run(path)
    if part == "checkpoints" and list_steps(output):
        raise CheckpointError(f"{output} has checkpoints already: give another --output")
    if part is not None:
        raise CheckpointError(f"{output} holds {part} of a run: give another --output")
    if target == "run":
        check_path(path)
        if os.path.lexists(path / "config.json"):
            raise CheckpointError(f"{output} holds a config.json already: give another --output")
        return  # who works there is for the lock to say
    if path.exists() and not (target == "transformers" and path.is_dir()):
        raise CheckpointError(f"{output} is there already: give another --output")
    if (who := lock_holder(path)) is not None:
        raise CheckpointError(f"{output} is in use by {who}: give another --output")


def check_path(run: Path) -> None:
    """Raises CheckpointError where checkpoints that are written to the run folder could not be read again.

    Orbax takes the path itself for a pattern when it looks for what it has written, and TensorStore takes a
    backslash for a slash.
    """
    path = os.path.abspath(run)
    if found := [character for character in _NOT_IN_PATHS if character in path]:
        raise CheckpointError(
            f"{path}: checkpoints cannot be written to a path with {' '.join(found)}: give a folder without "
            f"any of {' '.join(_NOT_IN_PATHS)}"
        )


def check_workdir(run: Path) -> None:
    """Raises CheckpointError where a run would write over the config.json of something else."""
    if _is_run_config(run / "config.json") is False and not list_steps(str(run)):
        raise CheckpointError(f"{run} holds a config.json that is not of a run: use another --workdir")


@contextlib.contextmanager
def no_new_folders_on_failure(path: Path) -> Iterator[None]:
    """A block whose failure leaves neither `path` nor folders above it, if they are new, empty folders."""
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # something is in it
            for folder in new:
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()
        raise


@contextlib.contextmanager
def nothing_new_on_failure(path: Path) -> Iterator[None]:
    """A block whose failure leaves at `path` what was there before: no file, or no other entries of a folder.

    Nobody else may write there meanwhile.
    """
    is_new, before = not os.path.lexists(path), set(os.listdir(path)) if path.is_dir() else set()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            new = [path] if is_new else [path / name for name in set(os.listdir(path)) - before]
            for made in new:
                _remove(made)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
