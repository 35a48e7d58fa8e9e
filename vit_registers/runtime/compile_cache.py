"""JAX's cache of compiled functions, in the user's cache folder. Only programs turn it on, not imports."""

import functools
import hashlib
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import jax

from vit_registers.errors import ConfigError
from vit_registers.status import say

AUTO, OFF = "auto", "off"  # values of run.compile_cache; all others are folders
VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # of JAX; if it is set, even to nothing, it has precedence
_MIN_COMPILE_TIME = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_LEAST_S = 0.3  # functions that compile faster are not stored
_MOST_BYTES = 2**30
_SUFFIX = "-cache"  # of JAX's files; they begin with the name of the function
_WARNING = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)", re.DOTALL
)


def use_compile_cache(setting: str, *, is_quiet: bool = False) -> None:
    """Lets JAX store what it compiles, and read it in the next program; `setting` is run.compile_cache.

    "auto" is a folder for this kind of processor in the user's cache folder, as executables for another one
    may not run here. The oldest entries are removed if the folder has more than 1 GiB. A folder that cannot
    be written is not used, and an entry that cannot be read or written is compiled again; both are a line,
    which `is_quiet` suppresses. Raises ConfigError for a folder in an object store.
    """
    if "://" in setting:
        raise ConfigError(f"run.compile_cache={setting} must be 'auto', 'off' or a folder of this machine")
    speak: Callable[[str], None] = (lambda line: None) if is_quiet else say
    if VARIABLE in os.environ:
        _explain_once(None, speak)
        return
    if setting == OFF:
        return
    try:
        folder = _auto_folder() if setting == AUTO else Path(setting).expanduser()
        _prepare(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "strerror", None) or error
        name = getattr(error, "filename", None) or setting
        speak(f"no compile cache: {name}: {reason}; run.compile_cache=off, or a folder, avoids this line")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _MIN_COMPILE_TIME not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_S)
    _explain_once(folder, speak)


def _auto_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # as its specification demands
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(base).expanduser() / "vit_registers" / "jax" / _processor()


@functools.cache
def _processor() -> str:
    """A name of this kind of processor: its architecture, and a digest of its model and instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    keys = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    first = {}
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in keys:
            first.setdefault(key.strip(), " ".join(sorted(value.split())))
    text = repr(sorted(first.items())) if first else platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _prepare(folder: Path) -> None:
    """Creates the folder for this user only, and removes its oldest entries. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise OSError(0, "it belongs to another user, and what it holds is executed", str(folder))
    with tempfile.TemporaryFile(dir=folder, prefix=".writable-"):
        pass
    entries = []
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
        except OSError:  # removed by another program
            continue
    size = sum(size for _, size, _ in entries)
    for _, one, path in sorted(entries) if size > _MOST_BYTES else ():
        if size > _MOST_BYTES // 2:
            path.unlink(missing_ok=True)
            size -= one


def _explain_once(folder: Path | None, speak: Callable[[str], None]) -> None:
    """Prints JAX's warnings about entries as one line, and removes damaged ones from our folder.

    JAX warns once for each function, and would neither read nor replace a damaged entry in later programs.
    """
    show, said = warnings.showwarning, set[str]()

    def explain(message: Warning | str, *rest: object) -> None:
        found = _WARNING.match(str(message))
        if found is None:
            show(message, *rest)  # pyright: ignore[reportArgumentType]
            return
        verb, function, reason = found.groups()
        if verb == "reading" and folder is not None:
            for path in folder.glob(f"{function}-*{_SUFFIX}"):
                path.unlink(missing_ok=True)
        if verb not in said:
            said.add(verb)
            what = "read, so it is compiled again" if verb == "reading" else "written"
            short = next(iter(reason.splitlines()), "")[:200]
            speak(f"compile cache: {function} cannot be {what}: {short}")

    warnings.filterwarnings("always", "Error (reading|writing) persistent compilation cache")
    warnings.showwarning = explain
