"""The first lines of every program, before the imports that take seconds."""

import signal


def begin(module_name: str) -> None:
    """To be called by a program with its __name__, before its other imports.

    Until cli.run, ctrl-C ends the process at once, as an interrupted import of a C extension may ignore it or
    fail as something else. Settings that do not exist are named without these imports.
    """
    if module_name != "__main__":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vit_registers import cli  # which takes a moment too

    cli.check_settings()
