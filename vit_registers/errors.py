"""Errors that the user can mend: the entry points print them as one line and exit with code 2.

Each message says what is wrong, where, and how to mend it. `assert` is for our own mistakes.
"""

import os

INTERRUPTED = 130  # the exit code after ctrl-C, as of a shell
UNREAD = 141  # where nobody reads the output any more, as in `| head -1`; of a shell too


class UserError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(UserError):
    """A configuration key or value that cannot work."""


class DataError(UserError):
    """A data set that is missing, empty, broken or other than the configuration says."""


class CheckpointError(UserError):
    """A run folder or checkpoint that is missing, damaged, of another run or not writable."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose loss is no longer finite."""


def user_line(error: BaseException) -> str | None:
    """The line to print of an error that the user can put right, else None.

    That is a UserError, an error of a file, or memory that does not suffice, of this host or of a device.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    is_xla = any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "Out of memory allocating"))
    if isinstance(error, MemoryError) or is_xla:
        reason = next(iter(str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()), "")
        return f"out of memory ({reason[:200]}): take a smaller batch or model, or more devices"
    return None
