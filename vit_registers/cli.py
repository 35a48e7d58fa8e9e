"""What the entry points share: flags, and errors that the user can mend as one line with exit code 2."""

import inspect
import logging as standard_logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from vit_registers.config import Config, from_mapping
from vit_registers.errors import ConfigError, UserError

_OF_JAX = "1"  # what jax sets TF_CPP_MIN_LOG_LEVEL to when it is imported


def fail(error: Exception) -> None:
    """Prints the error as one line and exits with code 2."""
    line = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    if any(arg in ("--help", "-h", "--helpfull") for arg in argv):
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.get_help() if "--helpfull" in argv else flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except AttributeError as error:  # ml_collections: an override of a setting that there is not
        text = str(error).replace("\\n", " ").replace("\\", "").strip("\"'")
        fail(ConfigError(f"no such setting: '{text}"))
    except (UserError, flags.Error, KeyError, TypeError, ValueError) as error:
        fail(error)
    if len(rest) > 1:
        fail(ConfigError(f"'{rest[1]}' is not a flag: settings are written --name=value"))
    return rest


def read_config() -> Config:
    """The Config of the --config flag and its overrides."""
    try:
        return from_mapping(flags.FLAGS.config)
    except OSError as error:  # ml_collections: the file is missing
        raise ConfigError(f"--config: {str(error).rpartition('] ')[2]}") from error


def _show_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """sys.unraisablehook, without what is left behind by saves that failed and were reported."""
    if str(error.exc_value) != "Event loop is closed" and not inspect.iscoroutine(error.object):
        sys.__unraisablehook__(error)


def _hush_failed_saves() -> None:
    """A save that fails in one array gives up those of the others, wherever they are.

    Orbax raises its error, and this program says it in one line. Which of the given-up writes Python would
    speak of as well, and in which words, is a matter of time.
    """
    sys.unraisablehook = _show_unraisable
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    standard_logging.getLogger("asyncio").addFilter(lambda record: record.levelno > standard_logging.ERROR)
    # Orbax logs stack traces of errors that it raises as well.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, then calls `main`."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", _OF_JAX) == _OF_JAX:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what TensorFlow fails at is raised too

    def guarded(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            _hush_failed_saves()
        try:
            main()
        except UserError as error:
            fail(error)

    app.run(guarded, flags_parser=_parse)


def writable_folder(path: str, flag: str) -> Path:
    """The folder, made where it is not there. Raises ConfigError where nothing can be written in it."""
    if "://" in path:
        raise ConfigError(
            f"{flag}={path}: want a folder of a file system; mount the bucket, or copy afterwards"
        )
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}={path} cannot be written to: {error.strerror}") from error
    return folder
