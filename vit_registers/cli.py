"""Flags and errors of the entry points. Errors that users can fix are one line, with exit code 2."""

import argparse
import contextlib
import inspect
import io
import logging as standard_logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from vit_registers import startup, status
from vit_registers.config import Config, flag, own, to_config_dict
from vit_registers.errors import INTERRUPTED, UNREAD, ConfigError, UserError, user_line

if TYPE_CHECKING:
    from etils import epath  # takes longer than all that --help needs

_OF_JAX = "1"  # importing jax sets TF_CPP_MIN_LOG_LEVEL to this


def fail(error: Exception) -> NoReturn:
    """Prints the error as one line and exits with code 2."""
    line = " ".join(str(error).split()) or type(error).__name__
    status.clear()
    print(f"error: {line}", file=sys.stderr, flush=True)
    raise startup.Refused(line)


def call(function: Callable[[], None]) -> None:
    """Calls the function. Errors that users can fix end the program with one line."""
    try:
        with _for_reader():
            function()
    except UserError as error:
        fail(error)


def check_settings() -> None:
    """Ends the program with one line if the command line has unknown settings."""
    call(lambda: _check_text(sys.argv))
    call(lambda: flag.check_arguments(sys.argv))


def parse(argv: list[str], more_help: Callable[[], str] | None = None) -> list[str]:
    """The program's name, once the flags are parsed. Prints the help if it is asked for, and exits.

    Errors of flags end the program with one line. Flags that are parsed already do not change.
    """
    if flags.FLAGS.is_parsed():
        return argv[:1]
    app.define_help_flags()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not be valid text
    if any(arg in ("--help", "-h", "--helpfull") for arg in argv):
        with _for_reader():
            print(sys.modules["__main__"].__doc__)
            print(flags.FLAGS.get_help() if "--helpfull" in argv else flags.FLAGS.main_module_help())
            if more_help is not None:
                print(f"\n{more_help()}")
        sys.exit(0)
    with _one_line(), _quiet(logging.get_absl_logger()):  # its warnings are errors here
        _check_empty(argv)
        _check_positional(argv)
        rest = flags.FLAGS(argv)
    if len(rest) > 1:
        fail(flag.not_a_flag(rest[1]))
    return rest


@contextlib.contextmanager
def _for_reader() -> Iterator[None]:
    """Ends the program with code UNREAD, without a message, if the reader of its output has ended.

    Whether the output fails when it is printed or at the end depends on its length, and does not matter. The
    code of an error is kept.
    """
    try:
        yield
    except BrokenPipeError:
        _flush()
        sys.exit(UNREAD)
    except SystemExit as end:
        if not _flush() and not end.code:
            sys.exit(UNREAD)
        raise
    except BaseException:
        _flush()
        raise
    if not _flush():
        sys.exit(UNREAD)


def _flush() -> bool:
    """Writes what was printed. False if nobody reads it: then the interpreter would raise and print that."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextlib.contextmanager
def _quiet(logger: standard_logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_text(argv: list[str]) -> None:
    """Raises ConfigError for an argument that is not UTF-8, which JSON files cannot hold."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(argument).decode(errors="replace")
            raise ConfigError(f"'{shown}' is not valid UTF-8: rename the file or folder") from None


def _check_empty(argv: list[str]) -> None:
    """Raises ConfigError for an empty text flag; settings and lists may be empty."""
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = argument.partition("=")
        is_empty = value == "" if equals else following == ""
        bare = name.lstrip("-")
        is_list = bare in flags.FLAGS and isinstance(flags.FLAGS[bare].parser, flags.ListParser)
        if is_empty and name.startswith("-") and not (is_list or bare.startswith("config")):
            raise ConfigError(f"{name}= is empty: give a value, or leave the flag out")


def _check_positional(argv: list[str]) -> None:
    """Raises ConfigError for an argument without dashes that is not the value of the flag before it.

    Before flags are parsed: that a required flag is missing would be reported first.
    """
    for argument, before in zip(argv[1:], argv, strict=False):
        if not argument.startswith("-") and (
            before is argv[0] or "=" in before or not before.startswith("-")
        ):
            raise flag.not_a_flag(argument)


def define_config(default: str | None = None) -> None:
    """Defines --config=NAME[:ARGUMENT] and --config.SECTION.NAME=VALUE, for `config_of_flags`."""
    with _one_line():
        config_flags.DEFINE_config_file("config", default, "Run card or config file, with :ARGUMENT.")
        defined = flags.FLAGS["config"]
        defined.parser = flag.ConfigFile(defined.parser)
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], defined)  # so that --help lists it


def define_settings() -> None:
    """Defines --config.SECTION.NAME=VALUE without a file, for programs that read a run."""
    with _one_line():
        config_flags.DEFINE_config_dict("config", to_config_dict(Config()))


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Reports errors of flags in one line; those of ml_collections are parsed when they are defined."""
    try:
        yield
    except Exception as error:
        fail(flag.explain(error))


def early_flag(name: str) -> str | None:
    """The value of a flag on the command line; for config files, which run before the flags are parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", f"-{name}", dest="value")
    return parser.parse_known_args(sys.argv[1:])[0].value


def config_of_flags() -> Config:
    """The Config of the --config flag and its overrides."""
    return flag.read_flag(flags.FLAGS["config"])


def print_config() -> NoReturn:
    """Prints the config of the flags as a config file in Python, and exits."""
    given = config_flags.get_config_filename(flags.FLAGS["config"])
    print(own.config_text(config_of_flags(), f"--config={given}, with all settings."), end="")
    sys.exit(0)


def require(name: str) -> None:
    """Raises ConfigError if the flag is not given."""
    if flags.FLAGS[name].value is None:
        raise flag.missing_flag(f"--{name}")


def _handle_unraisable() -> None:
    """Obeys ctrl-C where Python would drop it, and suppresses messages about the remains of a failed save.

    Python drops an interrupt that arrives in a callback, such as that of JAX for garbage collection.
    If one array cannot be saved, Orbax raises its error and abandons the other writes. This program prints
    the error in one line. Python would report some of the abandoned writes too, depending on timing.
    """

    def show(error: "sys.UnraisableHookArgs") -> None:
        if isinstance(error.exc_value, KeyboardInterrupt):
            _end_interrupted()
        if str(error.exc_value) != "Event loop is closed" and not inspect.iscoroutine(error.object):
            sys.__unraisablehook__(error)

    sys.unraisablehook = show
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    standard_logging.getLogger("asyncio").addFilter(lambda record: record.levelno > standard_logging.ERROR)
    # Orbax logs stack traces of errors that it also raises.
    logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, if they are not parsed yet, then calls `main`."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", _OF_JAX) == _OF_JAX:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # errors of TensorFlow are also raised

    def guarded(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            _handle_unraisable()
        try:
            main()
        except Exception as error:
            line = user_line(error)
            if line is None:
                raise
            fail(UserError(line))

    startup.loading.close()
    if signal.getsignal(signal.SIGINT) is startup.end_interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _for_reader():
        try:
            app.run(guarded, flags_parser=parse)
        except KeyboardInterrupt:
            _end_interrupted()


def _end_interrupted() -> NoReturn:
    """Prints that ctrl-C ended the program, and exits without waiting for its threads.

    They may be waiting for data, or writing a checkpoint, which stays incomplete and is not restored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status.clear()
    with contextlib.suppress(OSError):
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(INTERRUPTED)


def local_folder(path: str, flag: str) -> Path:
    """A folder of this machine, which is created if needed. Raises ConfigError if it is not writable."""
    check_local(path, flag)
    return Path(writable_folder(path, flag))


def check_local(path: str, flag: str) -> None:
    """Raises ConfigError for a path in an object store, for what is only written on this machine."""
    if "://" in path:
        raise ConfigError(f"{flag}={path} must be a path on this machine: copy the output afterwards")


def writable_folder(path: str, flag: str) -> "epath.Path":
    """The folder, which is created if needed; also in gs://. Raises ConfigError if it is not writable."""
    from vit_registers.storage import files, paths

    paths.check_scheme(path, flag)
    folder = paths.folder(path)
    try:
        files.check_writable(folder)
    except OSError as error:
        raise ConfigError(f"{flag}={path} cannot be written to: {error.strerror}") from error
    return folder
