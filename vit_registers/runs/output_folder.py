"""Checks that a program which writes a run or another format does not overwrite a run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.runs.folders import read_json_object, remove
from vit_registers.runs.run_lock import lock_holder

_NOT_IN_PATHS = ("*", "?", "[", "\\")

# Only run folders have these. Folders of other formats have a config.json too.
_OF_RUNS = ("checkpoints", "metrics.jsonl", "result.json", "parameters.txt")
_SECTIONS = {"model", "data", "optimizer", "run"}  # of the config.json of a run


def _is_run_config(path: Path) -> bool | None:
    """Whether a config.json is that of a run; None if it is missing or not a JSON object."""
    try:
        config = read_json_object(path)
    except ConfigError:
        return None
    return None if config is None else config.keys() >= _SECTIONS


def check_output(output: str, source: str, *, target: str) -> None:
    """Raises CheckpointError if writing `output` would change `source`, a run, or an existing file.

    `target` is the format. An earlier export to transformers, which is a folder, may be overwritten.
    """
    path, read = Path(output).expanduser(), Path(source).expanduser()
    try:
        is_source = os.path.samefile(path, read)
    except OSError:
        is_source = os.path.realpath(path) == os.path.realpath(read)
    if is_source:
        raise CheckpointError(f"{output} is the input: give another --output")
    for parent in Path(os.path.realpath(path)).parents:
        if parent.name == "checkpoints" and list_steps(str(parent.parent)):
            raise CheckpointError(f"{output} lies in the checkpoints of a run: give another --output")
    parts = [name for name in _OF_RUNS if os.path.lexists(path / name)]
    if parts or _is_run_config(path / "config.json"):
        part = parts[0] if parts else "config.json"
        raise CheckpointError(f"{output} has {part} of a run: give another --output")
    if target == "run":
        check_path(path)
        if os.path.lexists(path / "config.json"):
            raise CheckpointError(f"{output} has a config.json already: give another --output")
        return  # RunLock checks whether another program uses it
    if path.exists() and not (target == "transformers" and path.is_dir()):
        raise CheckpointError(f"{output} exists already: give another --output")
    if (who := lock_holder(path)) is not None:
        raise CheckpointError(f"{output} is in use by {who}: give another --output")


def check_path(run: Path) -> None:
    """Raises CheckpointError if checkpoints written to the run folder could not be read again.

    Orbax uses the path as a glob pattern to find what it has written. TensorStore reads a backslash as a
    slash.
    """
    path = os.path.abspath(run)
    if found := [character for character in _NOT_IN_PATHS if character in path]:
        raise CheckpointError(
            f"{path}: checkpoints cannot be written to a path with {' '.join(found)}: give a folder without "
            f"any of {' '.join(_NOT_IN_PATHS)}"
        )


def check_workdir(run: Path) -> None:
    """Raises CheckpointError if a run would overwrite a config.json that is not of a run."""
    if _is_run_config(run / "config.json") is False and not list_steps(str(run)):
        raise CheckpointError(f"{run} holds a config.json that is not of a run: use another --workdir")


@contextlib.contextmanager
def no_new_folders_on_failure(path: Path) -> Iterator[None]:
    """A context that, if it fails, removes `path` and folders above it which are new and empty."""
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in new:
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()
        raise


@contextlib.contextmanager
def nothing_new_on_failure(path: Path) -> Iterator[None]:
    """A context that, if it fails, removes a new file at `path`, or the new entries of a folder.

    No other program may write there at the same time.
    """
    is_new, before = not os.path.lexists(path), set(os.listdir(path)) if path.is_dir() else set()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            new = [path] if is_new else [path / name for name in set(os.listdir(path)) - before]
            for made in new:
                remove(made)
        raise
