"""Checks that a program which writes a run or another format does not overwrite a run."""

import contextlib
from collections.abc import Iterator

from etils import epath

from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.runs.checkpoint_folder import list_steps
from vit_registers.storage import files, paths
from vit_registers.storage.files import read_json_object
from vit_registers.storage.run_lock import lock_holder

_NOT_IN_PATHS = ("*", "?", "[", "\\")

# Only run folders have these. Folders of other formats have a config.json too.
_OF_RUNS = ("checkpoints", "metrics.jsonl", "result.json", "parameters.txt")
_SECTIONS = {"model", "data", "optimizer", "run"}  # of the config.json of a run


def _is_run_config(path: epath.Path) -> bool | None:
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
    path = paths.folder(output)
    if paths.is_same_place(output, source):
        raise CheckpointError(f"{output} is the input: give another --output")
    for parent in paths.real_path(output).parents:
        if parent.name == "checkpoints" and list_steps(str(parent.parent)):
            raise CheckpointError(f"{output} lies in the checkpoints of a run: give another --output")
    parts = [name for name in _OF_RUNS if files.is_taken(path / name)]
    if parts or _is_run_config(path / "config.json"):
        part = parts[0] if parts else "config.json"
        raise CheckpointError(f"{output} has {part} of a run: give another --output")
    if target == "run":
        check_path(path)
        if files.is_taken(path / "config.json"):
            raise CheckpointError(f"{output} has a config.json already: give another --output")
        return  # RunLock checks whether another program uses it
    if files.exists(path) and not (target == "transformers" and files.is_folder(path)):
        raise CheckpointError(f"{output} exists already: give another --output")
    if (who := lock_holder(path)) is not None:
        raise CheckpointError(f"{output} is in use by {who}: give another --output")


def check_path(run: epath.Path) -> None:
    """Raises CheckpointError if checkpoints written to the run folder could not be read again.

    Orbax uses the path as a glob pattern to find what it has written. TensorStore reads a backslash as a
    slash.
    """
    path = str(paths.absolute(run))
    if found := [character for character in _NOT_IN_PATHS if character in path]:
        raise CheckpointError(
            f"{path}: checkpoints cannot be written to a path with {' '.join(found)}: give a folder without "
            f"any of {' '.join(_NOT_IN_PATHS)}"
        )


def check_workdir(run: epath.Path) -> None:
    """Raises CheckpointError if a run would overwrite a config.json that is not of a run."""
    if _is_run_config(run / "config.json") is False and not list_steps(str(run)):
        raise CheckpointError(f"{run} holds a config.json that is not of a run: use another --workdir")


@contextlib.contextmanager
def no_new_folders_on_failure(path: epath.Path) -> Iterator[None]:
    """A context that, if it fails, removes `path` and folders above it which are new and empty."""
    new = files.missing_folders(path)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in new:
                with contextlib.suppress(FileNotFoundError):
                    files.remove_empty(folder)
        raise


@contextlib.contextmanager
def nothing_new_on_failure(path: epath.Path) -> Iterator[None]:
    """A context that, if it fails, removes a new file at `path`, or the new entries of a folder.

    No other program may write there at the same time.
    """
    is_new, before = not files.is_taken(path), set(files.names(path)) if files.is_folder(path) else set()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            new = [path] if is_new else [path / name for name in set(files.names(path)) - before]
            for made in new:
                files.remove(made)
        raise


@contextlib.contextmanager
def reported_errors(output: str) -> Iterator[None]:
    """A context in which an error of the disk becomes one line; those of writing do not name the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{error.filename or output} cannot be written: {error.strerror}") from error
