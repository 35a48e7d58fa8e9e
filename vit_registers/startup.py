"""What every program does before its slow imports.

Programs import this first, to handle ctrl-C, so it imports only what Python has loaded by then, and signal.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from vit_registers.errors import INTERRUPTED


class Refused(SystemExit):
    """The end of a program with code 2 and an error that the user has to fix; the line is printed already."""

    def __init__(self, line: str):
        super().__init__(2)
        self.line = line


_before_end: list[Callable[[], None]] = []  # what the handler of ctrl-C calls first
loading = contextlib.ExitStack()  # shows on a terminal that libraries are imported; cli.run closes it


def begin(
    module_name: str,
    define_flags: Callable[[], None] | None = None,
    check_flags: Callable[[], None] | None = None,
    more_help: Callable[[], str] | None = None,
    on_refusal: Callable[[str], None] | None = None,
) -> None:
    """Prepares a program, which calls this with its __name__ before its other imports.

    Reports unknown settings before the slow imports. With `define_flags`, a function that defines the
    program's flags and imports nothing slow, it also parses the flags, prints the help, and reports errors of
    flags and of the config file. `check_flags` is called then; its errors are reported too. `more_help` gives
    the text that --help adds. `on_refusal` is called with the line of an error before the program ends. A
    terminal then shows that libraries are imported.
    """
    if module_name != "__main__":
        return
    end_on_interrupt()
    from vit_registers import cli, status  # imported here, as they take a moment

    _before_end[:] = [status.clear]

    try:
        cli.check_settings()
        if define_flags is not None:
            define_flags()
            cli.parse(sys.argv, more_help)
        if check_flags is not None:
            cli.call(check_flags)
    except Refused as refused:
        if on_refusal is not None:
            on_refusal(refused.line)
        raise
    if status.is_live():
        status.show("loading libraries ...")
        loading.enter_context(status.waiting("loading libraries", said_after_s=None))


def end_on_interrupt() -> None:
    """Makes ctrl-C end a program with one line and code INTERRUPTED, until cli.run, unless it is ignored.

    Programs call it before all other imports. Python's own handler would print a traceback, and an import of
    a C extension may drop its exception or raise another one. An interrupt that is ignored, as with nohup,
    stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_interrupted)


def end_interrupted(_number: int, _frame: FrameType | None) -> None:
    """The handler of end_on_interrupt: ends the process at once, without waiting for threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for function in _before_end:
        function()
    with contextlib.suppress(OSError):
        os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


def take_name() -> str:
    """The first argument, which is removed, if it is a name; else "".

    One that is not valid text stays, and `begin` reports it.
    """
    is_name = len(sys.argv) > 1 and not sys.argv[1].startswith("-") and sys.argv[1].isprintable()
    return sys.argv.pop(1) if is_name else ""
