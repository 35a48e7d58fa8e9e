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
from vit_registers.runtime.barrier import FailedElsewhere
from vit_registers.status import say
from vit_registers.storage.objects import StoreError


def is_any(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


class Keep:
    """Orbax's preservation policy: the last checkpoints, the best evaluated ones, and the multiples of
    checkpoint.keep_every_steps.

    Orbax's BestN policy lacks metrics after a restart, unless it may also delete the newest checkpoint.
    """

    def __init__(self, settings: config_lib.Checkpoint, best: Best):
        self._settings, self._best = settings, best
        self._score: dict[int, float] = {}

    def note(self, step: int, metrics: Mapping[str, float | None] | None) -> None:
        """Records the evaluation at `step`. One that is not finite never ranks among the best."""
        if metrics is not None and (score := self._best.score(metrics)) is not None:
            self._score[step] = score

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Whether to keep each of `checkpoints`, which are in the order of their steps."""
        del context
        settings, steps = self._settings, [info.step for info in checkpoints]
        score = self._score
        ranked = sorted((s for s in steps if s in score), key=lambda s: (score[s], s), reverse=True)
        kept = {*steps[-settings.keep_last :], *ranked[: settings.keep_best]}
        if settings.keep_every_steps is not None:
            kept |= {step for step in steps if step % settings.keep_every_steps == 0}
        return [step in kept for step in steps]


class FailedSaves:
    """The consecutive saves that failed, up to now. `limit` of them end the run."""

    def __init__(self, root: Any, limit: int):
        self._root, self._limit = root, limit
        self._failed: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._failed)

    def clear(self) -> None:
        self._failed = []

    def note(self, step: int, error: Exception | None, last_saved_step: int | None) -> None:
        """Records and prints that the save of `step` failed; `error` is None if it failed elsewhere.

        Raises CheckpointError if the limit is reached.
        """
        self._failed.append((step, reason(error)))
        if len(self._failed) >= self._limit:
            raise self.error(last_saved_step) from error
        if jax.process_index() == 0 or not isinstance(error, FailedElsewhere | None):
            left = self._limit - len(self._failed)
            say(
                f"checkpoint {self._root / str(step)} could not be written: {self._failed[-1][1]}; the run "
                f"continues, {_good(last_saved_step)}; {left} more in a row end it "
                "(checkpoint.max_failed_saves)"
            )

    def error(self, last_saved_step: int | None) -> CheckpointError:
        """The error to raise if the run cannot continue without a save."""
        (first, why), (last, last_why) = self._failed[0], self._failed[-1]
        more = ""
        if len(self._failed) > 1:
            more = f"; nor could {len(self._failed) - 1} more, up to step {last} ({last_why})"
        return CheckpointError(
            f"checkpoint {self._root / str(first)} could not be written: {why}{more}; "
            f"{_good(last_saved_step)}. Free space or restore access; the same command then resumes the run"
        )


def _good(step: int | None) -> str:
    return "there is no earlier checkpoint" if step is None else f"the last good checkpoint is step {step}"


# Messages of operating systems. TensorStore puts them into a line with all its paths.
_CAUSES = re.compile(
    "No space left on device|Disk quota exceeded|File too large|Read-only file system|Permission denied"
    "|Input/output error|Stale file handle|Connection timed out|No such file or directory"
)
_SPEC = "See full TensorStore details"  # 60 lines on how an array is stored follow


def reason(error: BaseException | None) -> str:
    """The reason why reading or writing a checkpoint failed, in one line; errors of TensorStore have many."""
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
    if isinstance(error, StoreError):
        return f"{error.filename}: {error.strerror}"
    if found := _CAUSES.search(str(error)):
        return found[0]
    line = (str(error).partition(_SPEC)[0].strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {line[:200]}"
