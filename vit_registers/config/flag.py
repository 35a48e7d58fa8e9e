"""The --config flag: the Config that it gives, and one-line errors."""

import contextlib
import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_registers.config.cards import find_config, read_card
from vit_registers.config.convert import (
    check_names,
    nearest,
    override,
    section_values,
    similar_settings,
    suggestion,
)
from vit_registers.config.settings import Config
from vit_registers.errors import ConfigError, UserError

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_FLAG = re.compile(r"--?config(?:=|$)")
_NOT_A_NUMBER = re.compile(r"flag (--.*): (?:invalid literal for (int)|could not convert string to float)")
_NOT_A_CHOICE = re.compile(r"flag (--\w+)=(.*): value should be one of <(.*)>")
_NOT_TRUE_OR_FALSE = re.compile(r"flag (--.*): \('Non-boolean argument to boolean flag', ")
_EXAMPLES = {
    "--config": "digits:registers=4",
    "--workdir": "runs/digits",
    "--checkpoint": "runs/digits",
    "--input": "weights.safetensors",
    "--name": "cifar10",
}
_MAX_TEXT = 300  # characters of another package's message
_WANT = "give a config file in Python, such as ./mine.py, or a run card, such as digits"


def check_arguments(argv: Sequence[str]) -> None:
    """Raises ConfigError with all overrides of unknown settings, or for a second --config. Reads no file."""
    matches = (_OVERRIDE.match(argument) for argument in argv)
    check_names(match[1] for match in matches if match)
    if (count := sum(bool(_FLAG.match(argument)) for argument in argv)) > 1:
        raise ConfigError(f"--config is given {count} times: keep one")


def read_flag(flag: flags.Flag) -> Config:
    """The Config of a parsed --config flag with its overrides. Raises ConfigError.

    An override of one of several alternatives unsets the others, whatever their values in the file.
    """
    if flag.value is None:
        raise ConfigError(f"--config has no value: {_WANT}")
    return override(flag.value, config_flags.get_override_values(flag))


class ConfigFile(flags.ArgumentParser):
    """The parser of --config=NAME[:ARGUMENT], which calls get_config() of the run card or file NAME.

    Every error in the file, or raised by it, becomes a ConfigError that names the file and the line.
    """

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser  # of ml_collections

    def parse(self, argument: str) -> ConfigDict:
        """The ConfigDict that the file returns. Raises ConfigError."""
        name, colon, text = argument.partition(":")
        file = _find_file(name)
        sys.modules.pop("config_config", None)  # of another file, whose get_config would be reused
        try:
            config = self._parser.parse(f"{file}{colon}{text}")
            if config is not None:
                getattr(config, "keys", None)  # raises the error of a file that get_config() could not open
        except (Exception, SystemExit) as error:  # a config file can raise anything
            raise explain(error, file) from error
        if not isinstance(config, ConfigDict):
            raise ConfigError(
                f"--config={file}: get_config() returned {type(config).__name__}: return a "
                "ConfigDict, such as to_config_dict(Config(...))"
            )
        return config


def _find_file(name: str) -> str:
    """The config file `name`. Raises ConfigError for one that is not, by its name and first bytes."""
    if not name or name.startswith("--"):
        raise ConfigError(f"--config has no value: {_WANT}")
    try:
        file = find_config(name)
    except ConfigError as error:
        raise ConfigError(f"--config={error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config={name} cannot be read: {getattr(error, 'strerror', error)}") from error
    try:
        if not file.is_file():
            raise ConfigError(f"--config={name} is not a file: {_WANT}")
        with file.open("rb") as opened:
            head = opened.read(4096)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config={name} cannot be read: {getattr(error, 'strerror', error)}") from error
    if file.suffix == ".json" or head.lstrip()[:1] == b"{":
        raise ConfigError(
            f"--config={name} is JSON: {_WANT}; to resume a run, give the command that started it"
        )
    if b"\0" in head:
        raise ConfigError(f"--config={name} is a binary file: {_WANT}")
    return str(file)


def missing_flag(name: str) -> ConfigError:
    """The error for a required flag, such as "--config", that is not given."""
    example = f", such as {name}={_EXAMPLES[name]}" if name in _EXAMPLES else ""
    return ConfigError(f"{name} is missing: give it a value{example}")


def not_a_flag(text: str) -> ConfigError:
    """The error for an argument without dashes, with the flag that may be meant."""
    main = next(
        (name for name in _EXAMPLES if (key := name.lstrip("-")) != "workdir" and key in flags.FLAGS), None
    )
    takes_file = "config" in flags.FLAGS and isinstance(flags.FLAGS["config"].parser, ConfigFile)
    if main == "--config" and not takes_file:  # the settings of a program that reads a run
        main = "--checkpoint"
    hint = "settings are written --name=value"
    if takes_file and "=" in text:
        hint = f"arguments of a run card follow its name and a colon, as in --config=digits:{text}"
    elif main is not None and "=" not in text:
        hint = f"did you mean {main}={text}?"
    return ConfigError(f"'{text}' is not a flag: {hint}")


def unknown_flag(name: str) -> ConfigError:
    """The error for a flag that the program does not have, with the flag or setting that may be meant."""
    own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]) if "." not in flag.name]
    close = difflib.get_close_matches(name, own, n=1, cutoff=0.75)
    cards = [argument for argument in sys.argv if _FLAG.match(argument)]
    hint = ""
    if close:
        hint = f": did you mean --{close[0]}?"
    elif cards and (taken := _argument_hint(name, cards[0])):
        hint = f": {taken}"
    elif "config" in flags.FLAGS and (similar := similar_settings(name)):
        hint = f": did you mean {' or '.join(f'--config.{one}' for one in similar[:3])}?"
    return ConfigError(f"--{name} is not a flag{hint or '; --help lists the flags'}")


def _argument_hint(name: str, given: str) -> str | None:
    """What to write if the run card of a flag --config=CARD takes the argument `name`."""
    card, colon, text = given.partition("=")[2].partition(":")
    with contextlib.suppress(ConfigError, OSError, SyntaxError, ValueError, KeyError):
        if name in read_card(find_config(card)).defaults:
            return f"write --config={card}:{text}{',' if colon else ''}{name}=..., as an argument of {card}"
    return None


def explain(error: BaseException, path: str = "") -> UserError:
    """An error of parsing the flags, in one line; `path` is the config file, if it was read."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    for one in chain:
        if isinstance(one, UserError):
            return one
    for one in reversed(chain) if path else ():
        if line := _line(one, path):
            return ConfigError(f"{path}:{line}: {_problem(one)}")
    if path:
        return ConfigError(f"--config={path}: {_problem(chain[-1])}")
    if isinstance(error, flags.UnrecognizedFlagError):
        return unknown_flag(error.flagname)
    if found := _NOT_A_NUMBER.search(str(error)):
        return ConfigError(f"{found[1]}: must be a {'whole ' if found[2] else ''}number")
    if found := _NOT_A_CHOICE.search(str(error)):
        return ConfigError(f"{found[1]}={found[2]} is unknown: {nearest(found[2], found[3].split('|'))}")
    if found := _NOT_TRUE_OR_FALSE.search(str(error)):
        return ConfigError(f"{found[1]}: must be True or False")
    if found := re.search(r"Flag (--\w+) must have a value other than None", str(error)):
        return missing_flag(found[1])
    return ConfigError(_text(error) if isinstance(error, flags.Error) else _problem(error))


def _line(error: BaseException, path: str) -> int | None:
    file = Path(path).expanduser().resolve()
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == file:
        return error.lineno
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file]
    return frames[-1].lineno if frames else None


def _problem(error: BaseException) -> str:
    """The message of an error, with the nearest setting if it is about an unknown one."""
    text = str(error)
    if isinstance(error, AttributeError) and error.name == "get_config":
        return "the file has no get_config(): define get_config(arg=None), which returns a ConfigDict"
    if found := re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        names = {type(value).__name__: name for name, value in section_values(Config()).items()}
        section = names.get(found[1], found[1].lower())
        return f"{found[1]} has no setting '{found[2]}': {suggestion(f'{section}.{found[2]}')}"
    is_of_settings = isinstance(error, AttributeError | KeyError) and not isinstance(error, flags.Error)
    if is_of_settings and (found := re.search(r"\W*([A-Za-z_]\w*)\\*['\"]", text)):
        return f"there is no setting '{found[1]}': {suggestion(found[1])}"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {_text(error)}".removesuffix(": ")


def _text(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "").strip()
    return f"{line[:_MAX_TEXT]} ..." if len(line) > _MAX_TEXT else line
