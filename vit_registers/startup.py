"""What every program does before its slow imports."""

import signal
import sys
from collections.abc import Callable


def begin(module_name: str, define_flags: Callable[[], None] | None = None) -> None:
    """Prepares a program, which calls this with its __name__ before its other imports.

    Reports unknown settings before the slow imports. With `define_flags`, a function that defines the
    program's flags and imports nothing slow, it also parses the flags, prints the help, and reports errors of
    flags and of the config file. Makes ctrl-C end the process at once until cli.run, because an import of a C
    extension may ignore the interrupt or raise another error.
    """
    if module_name != "__main__":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if it is ignored, as with nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vit_registers import cli  # imported here, as it takes a moment

    cli.check_settings()
    if define_flags is not None:
        define_flags()
        cli.parse(sys.argv)
