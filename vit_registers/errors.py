"""Errors that users can fix: the entry points print them as one line and exit with code 2.

Each message says what is wrong, where, and how to fix it. `assert` is for bugs of this project.
"""

import os

INTERRUPTED = 130  # exit code after ctrl-C, as in a shell
UNREAD = 141  # exit code if the reader of the output has gone, as in `| head -1`; as in a shell


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


def user_line(error: BaseException) -> str | None:
    """The line to print for an error that users can fix; None for all other errors.

    Users can fix a UserError, an error of a file, and a lack of memory of the host or of a device.
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
