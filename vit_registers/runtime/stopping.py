"""An orderly stop: a signal requests it, and all processes agree on the step after which they stop."""

import contextlib
import signal
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_registers.config import check_value


class StopRequest(contextlib.ExitStack):
    """True after SIGTERM or SIGINT was received in its `with` block; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def _handle(self, number: int, _frame: object) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name

    def __bool__(self) -> bool:
        return bool(self._name)

    def __str__(self) -> str:
        return self._name or "stop requested on another process"


class Agreement:
    """Whether a stop was requested on any process: the same answer on all of them at the same step.

    Every `every_steps` steps it starts a reduction over the devices and returns the result of the one before,
    which is available by then, so that no step waits for it. All processes stop at most 2 * every_steps steps
    after a signal. A process that is alone stops at once.
    """

    def __init__(self, mesh: jax.sharding.Mesh, every_steps: int):
        check_value("run.stop_every_steps", every_steps)
        self._every_steps, self._is_alone = every_steps, jax.process_count() == 1
        self._layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def is_reached(self, step: int, request: StopRequest) -> bool:
        """Whether to stop after `step`. All processes call it for the same steps, in order."""
        if self._is_alone:
            return bool(request)
        if step % self._every_steps:
            return False
        before, own = self._asked, np.array([bool(request)])
        shape = (self._layout.mesh.size,)
        self._asked = self._any(jax.make_array_from_callback(shape, self._layout, lambda _: own))
        return before is not None and bool(before)
