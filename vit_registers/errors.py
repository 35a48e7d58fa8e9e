"""Errors that users can fix: the entry points print them as one line and exit with code 2.

Each message says what is wrong, where, and how to fix it. `assert` is for bugs of this project.
"""

import importlib.util
import os

# Exit codes, as in a shell.
INTERRUPTED = 130  # after ctrl-C
UNREAD = 141  # the reader of the output has ended, as with `| head -1`


class UserError(Exception):
    """Base of all errors that users can fix."""


class ConfigError(UserError):
    """An invalid setting or value."""


class DataError(UserError):
    """A data set that is missing, empty, broken or different from the configuration."""


class CheckpointError(UserError):
    """A run folder or checkpoint that is missing, damaged, incompatible or not writable."""


class TrainingError(UserError):
    """A run that cannot continue, for example because its loss is not finite."""


class MissingPackageError(UserError):
    """A package of an extra, such as [data], that is not installed."""


def missing_package(*names: str) -> str | None:
    """The first package of `names` that is not installed; None if all are. Imports none of them."""
    return next((name for name in names if importlib.util.find_spec(name) is None), None)


def extra_cure(extra: str) -> str:
    """The command that installs the packages of an extra of this package."""
    return f'pip install "vit-registers[{extra}]"'


def require_extra(extra: str, *names: str, what: str, otherwise: str = "") -> None:
    """Raises MissingPackageError if a package of `names`, which `what` requires, is not installed.

    `otherwise` says what can be done without it.
    """
    if missing := missing_package(*names):
        cure = f"{extra_cure(extra)}, or {otherwise}" if otherwise else extra_cure(extra)
        raise MissingPackageError(f"{what} requires {missing}, which is not installed: {cure}")


_NO_HOME = "Could not determine home directory."  # of Path.expanduser


def user_line(error: BaseException) -> str | None:
    """The line to print for an error that users can fix; None for any other error.

    Users can fix a UserError, an OSError of a file, and insufficient memory of the host or of a device.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, RuntimeError) and str(error) == _NO_HOME:
        return "a path begins with ~ and the name of an unknown user: give the path of the folder"
    is_xla = any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "Out of memory allocating"))
    if isinstance(error, MemoryError) or is_xla:
        reason = next(iter(str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()), "")
        return f"out of memory ({reason[:200]}): use a smaller batch or model, or more devices"
    return None
