"""A trace of a few steps, for TensorBoard's profile plugin, XProf or Perfetto."""

import contextlib
import os

import jax

from vit_registers.errors import ConfigError


def parse_steps(text: str | None, total_steps: int) -> tuple[int, int] | None:
    """(first, last), both traced, of "first:last"; None of None.

    Raises ConfigError for other text, and for steps that a run of `total_steps` does not have.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ConfigError(
            f"run.profile_steps={text!r}: must be 'first:last' with 1 <= first <= last, as '10:15'"
        )
    if int(last) > total_steps:
        raise ConfigError(
            f"run.profile_steps={text!r}: the run has {total_steps} steps, so last must be <= {total_steps}"
        )
    return int(first), int(last)


class Profile(contextlib.ExitStack):
    """Writes a trace of the steps first to last, on the devices of this process, into RUN/profile.

    A run that resumes after `first` writes none. It is a context manager, which stops a trace on exit.
    """

    def __init__(self, folder: str | os.PathLike[str], steps: tuple[int, int] | None):
        super().__init__()
        self._folder, self._steps = folder, steps

    def before(self, step: int) -> None:
        """To be called before `step` starts."""
        if self._steps is not None and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self.callback(jax.profiler.stop_trace)

    def after(self, step: int, result: jax.Array) -> None:
        """To be called after `step` has started; `result` is one of its outputs."""
        if self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(result)
            self.close()
