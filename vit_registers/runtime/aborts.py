"""What is done when a library aborts the process."""

import contextlib
import ctypes
import signal
from collections.abc import Callable


def on_abort(call: Callable[[], None]) -> contextlib.ExitStack:
    """Until it is closed, `call` is called on SIGABRT; it has to end the process.

    The handler is C's, as Python's own would have to wait for the main thread.
    """
    handler, stack = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call()), contextlib.ExitStack()
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    stack.callback(set_handler, signal.SIGABRT, before)
    stack.callback(lambda: handler)  # which has to live as long
    return stack
