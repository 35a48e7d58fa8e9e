"""Which checkpoints a run keeps, and how it handles saves that fail."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_registers import config as config_lib
from vit_registers.errors import CheckpointError
from vit_registers.objectives.base import Best
from vit_registers.runs.ranking import find_non_finite
from vit_registers.runs.writers import say
from vit_registers.runtime.barrier import FailedElsewhere

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between tries to save what the run ends with; each twice as long


def is_any(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Keep:
    """Orbax's preservation policy: the last checkpoints, the best of those that have been evaluated, and the
    multiples of checkpoint.keep_every_steps.

    Orbax's own policy for the best knows no metrics after a restart unless it may also delete the newest.
    """

    def __init__(self, settings: config_lib.Checkpoint, best: Best):
        self._settings, self._best = settings, best
        self._score: dict[int, float] = {}

    def note(self, step: int, metrics: Mapping[str, float | None] | None) -> None:
        """Records the metrics at `step`. An evaluation that is not finite is never among the best."""
        if metrics is None or find_non_finite(metrics):
            return
        if (score := self._best.score(metrics)) is not None:
            self._score[step] = score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Whether to keep each of `checkpoints`, which come oldest first."""
        del context
        settings, steps = self._settings, [info.step for info in checkpoints]
        score = self._score
        ranked = sorted((s for s in steps if s in score), key=lambda s: (score[s], s), reverse=True)
        kept = {*steps[-settings.keep_last :], *ranked[: settings.keep_best]}
        if settings.keep_every_steps is not None:
            kept |= {step for step in steps if step % settings.keep_every_steps == 0}
        return [step in kept for step in steps]


class FailedSaves:
    """The consecutive saves that failed, of which `limit` end the run."""

    def __init__(self, root: Any, limit: int):
        self._root, self._limit = root, limit
        self._failed: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._failed)

    def clear(self) -> None:
        """To be called after a save was written."""
        self._failed = []

    def note(self, step: int, error: Exception | None, last_saved_step: int | None) -> None:
        """Records and prints that the save of `step` failed; `error` is None if it failed on another process.

        Raises CheckpointError if `limit` consecutive saves have failed.
        """
        self._failed.append((step, reason(error)))
        if len(self._failed) >= self._limit:
            raise self.error(last_saved_step) from error
        if jax.process_index() == 0 or not isinstance(error, FailedElsewhere | None):
            left = self._limit - len(self._failed)
            say(
                f"checkpoint {self._root / str(step)} could not be written: {self._failed[-1][1]}; the run "
                f"goes on, {_good(last_saved_step)}; {left} more in a row end it "
                "(checkpoint.max_failed_saves)"
            )

    def error(self, last_saved_step: int | None) -> CheckpointError:
        """The error of a run that cannot continue without a save."""
        (first, why), (last, last_why) = self._failed[0], self._failed[-1]
        more = ""
        if len(self._failed) > 1:
            more = f"; nor could {len(self._failed) - 1} more, up to step {last} ({last_why})"
        return CheckpointError(
            f"checkpoint {self._root / str(first)} could not be written: {why}{more}; "
            f"{_good(last_saved_step)}. Once there is room and access the same command goes on from there"
        )


def _good(step: int | None) -> str:
    return "there is no earlier checkpoint" if step is None else f"the last good checkpoint is step {step}"


# Reasons that operating systems give. TensorStore's lines contain them among its paths.
_CAUSES = re.compile(
    "No space left on device|Disk quota exceeded|File too large|Read-only file system|Permission denied"
    "|Input/output error|Stale file handle|Connection timed out|No such file or directory"
)
_SPEC = "See full TensorStore details"  # followed by 60 lines on how an array is stored


def reason(error: BaseException | None) -> str:
    """Why reading or writing a checkpoint failed, in one line: Orbax's and TensorStore's errors have many."""
    if error is None:
        return "another process could not write its part"
    if isinstance(error, FailedElsewhere):
        return str(error)
    while True:
        if isinstance(error, BaseExceptionGroup):  # of the reads or writes of several arrays
            error = error.exceptions[0]
        elif _SPEC in str(error) and error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    if found := _CAUSES.search(str(error)):
        return found[0]
    line = (str(error).partition(_SPEC)[0].strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {line[:200]}"
