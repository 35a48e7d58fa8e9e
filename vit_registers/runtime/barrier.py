"""The barrier at which the processes of a job meet while they save a checkpoint."""

import collections
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from vit_registers.runtime.rendezvous import KEYS, key_value_store


class FailedElsewhere(Exception):
    """Another process could not write its part of a save."""


class Barrier:
    """Orbax's barrier_sync_fn, at which no process waits for one that could not write its part.

    Orbax's own function waits 20 minutes. A process whose save has failed calls a last barrier while its
    error propagates. There it publishes the reason, and all processes at any barrier of that save then raise
    FailedElsewhere. Process 0, which holds the keys, counts the processes that have arrived.
    """

    _saves = itertools.count()  # of all runs of this process; the same on all processes
    _poll_s, _look_s = 0.05, 1.0

    def __init__(self, reason: Callable[[BaseException], str]):
        """`reason` gives the line about an error that the other processes print."""
        self._save, self._calls, self._reason = "", collections.Counter(), reason

    def begin(self) -> None:
        """To be called by all processes before a save; the save before has ended on all of them."""
        client = key_value_store()
        if self._save and jax.process_index() == 0:
            client.key_value_delete(self._save)
        self._save = f"{KEYS}saves/{next(self._saves)}/"
        self._calls.clear()

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when all processes have called it. Raises FailedElsewhere, or TimeoutError."""
        client, me = key_value_store(), jax.process_index()
        if (error := sys.exc_info()[1]) is not None:
            if not isinstance(error, FailedElsewhere):
                client.key_value_set(f"{self._save}failed/{me}", self._reason(error), True)
            return
        self._calls[key] += 1
        here = f"{self._save}{key}/{self._calls[key]}/"
        client.key_value_set(f"{here}there/{me}", "")
        deadline = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < deadline:
            if self._is_open(client, here):
                return
            for path, why in client.key_value_dir_get(f"{self._save}failed/"):
                raise FailedElsewhere(f"process {path.rpartition('/')[2]} could not write its part: {why}")
        raise TimeoutError(f"not all processes arrived within {timeout_ms / 1000:.0f} s")

    def _is_open(self, client: Any, here: str) -> bool:
        """Whether all processes have arrived. Waits for that for a moment."""
        if jax.process_index() != 0:
            try:
                client.blocking_key_value_get(f"{here}open", int(1000 * self._look_s))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                return False
            return True
        if len(client.key_value_dir_get(f"{here}there/")) < jax.process_count():
            time.sleep(self._poll_s)
            return False
        client.key_value_set(f"{here}open", "")
        return True
