"""The start of every program, before the imports that take seconds."""

import signal


def begin(module_name: str) -> None:
    """Prepares a program, which calls this with its __name__ before its other imports.

    Until cli.run, ctrl-C ends the process at once: an interrupted import of a C extension may ignore it or
    raise another error. Unknown settings are reported before these imports.
    """
    if module_name != "__main__":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored, as under nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vit_registers import cli  # takes a moment as well

    cli.check_settings()
