"""A handler for aborts of the process by a library."""

import contextlib
import ctypes
import signal
from collections.abc import Callable


def on_abort(call: Callable[[], None]) -> contextlib.ExitStack:
    """Calls `call`, which has to end the process, on SIGABRT, until the returned stack is closed.

    The handler is one of C: a handler of Python would have to wait for the main thread.
    """
    handler, stack = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: call()), contextlib.ExitStack()
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    stack.callback(set_handler, signal.SIGABRT, before)
    stack.callback(lambda: handler)  # keeps the handler alive
    return stack
