"""The training loop: steps, logging, evaluation, checkpoints and stop requests."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vit_registers.config import Checkpoint, Run, check_section
from vit_registers.data.batch import Batch
from vit_registers.errors import CheckpointError, TrainingError
from vit_registers.objectives.base import find_non_finite
from vit_registers.runs.checkpoints import Checkpoints
from vit_registers.runs.progress import Progress
from vit_registers.runs.writers import MetricWriter
from vit_registers.runtime.profiling import Profile
from vit_registers.runtime.stopping import Agreement, StopRequest
from vit_registers.runtime.watchdog import Watchdog
from vit_registers.training.durations import Durations
from vit_registers.training.state import TrainState
from vit_registers.training.step import Step

_MAX_AHEAD = 8  # steps that are started before one is complete


@dataclasses.dataclass
class Loop:
    """Runs the train step over batches until the last step. An object can be used once.

    `evaluators` are called with the state; the metrics of the first one rank the checkpoints. The names in
    metrics.jsonl are train/loss, ... and <evaluator>/<metric>, ...
    """

    settings: Run
    checkpoint: Checkpoint
    durations: Durations
    train_step: Step
    evaluators: Mapping[str, Callable[[TrainState], Mapping[str, float]]]
    checkpoints: Checkpoints
    writer: MetricWriter | None  # None on all processes but the first
    progress: Progress
    agreement: Agreement
    watchdog: Watchdog
    profile: Profile
    _pending: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    _is_save_due: bool = False
    _is_compiled: bool = False

    def __post_init__(self) -> None:
        check_section("run", self.settings)
        self._skipped, self._skipped_in_a_row = self.checkpoints.skipped
        self._skipped_before = self._skipped  # when the number was last printed

    def run(self, state: TrainState, batches: Iterator[Batch]) -> TrainState:
        """The state after the last step, or after the step with a stop request. It is saved.

        Raises TrainingError if more than run.max_skipped_steps consecutive steps are not finite.
        """
        total, log_every = self.durations.total_steps, self.settings.log_every_steps
        step, evaluated = int(state.step), None
        with StopRequest() as stop, self.watchdog, self.profile:
            if step == 0 and self.settings.eval_at_start:
                self._evaluate(step, state)
            while step < total and not self.agreement.is_reached(step, stop):
                self.profile.before(step + 1)
                state, metrics = self._step(step, state, batches)
                step, evaluated = step + 1, None
                self._pending.append((step, metrics))
                if len(self._pending) > _MAX_AHEAD:  # see in_turn in data/prefetch.py
                    jax.block_until_ready(self._pending[-_MAX_AHEAD][1]["loss"])
                self._show()
                self.watchdog.started(step, metrics["loss"])
                self.profile.after(step, metrics["loss"])
                if step % log_every == 0 or step == total:
                    self._log()
                if step % self.durations.eval_every_steps == 0 or step == total:
                    evaluated = self._evaluate(step, state)
                    self._save(step, state, evaluated)
                elif self._is_save_due or step % self.checkpoint.every_steps == 0:
                    self._save(step, state, None)
            with self.watchdog.slow("the last save"), self.progress.seldom("saving"):
                if self._fetch() is not None:  # stopped since the last record: these seconds count too
                    self._write_times(step)
                if self.writer is not None:
                    self.writer.before_save()
                self.checkpoints.save_surely(state, evaluated, skipped=self._skips())
        if step < total:
            where = f"step {step} of {total} after {self.progress.time_s:.1f} s of training"
            self.progress.say(f"{stop}: saved at {where}; the same command resumes")
        return state

    def _step(
        self, step: int, state: TrainState, batches: Iterator[Batch]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        if self._is_compiled:
            return self.train_step(state, next(batches))
        with self.progress.waiting("preparing the first batch"):
            batch = next(batches)
        with self.progress.waiting("compiling the train step"):
            result = self.train_step(state, batch)
        self._is_compiled = True
        self.progress.compiled(step)
        return result

    def _show(self) -> None:
        """Shows the newest step that is finished, if that is due. Waits for none."""
        if self.progress.is_due():
            ready = [(step, metrics["loss"]) for step, metrics in self._pending if metrics["loss"].is_ready()]
            if ready:
                self.progress.show(ready[-1][0], float(ready[-1][1]))

    def _skips(self) -> tuple[int, int]:
        return self._skipped, self._skipped_in_a_row

    def _fetch(self) -> tuple[int, dict[str, float]] | None:
        """(step, metrics) of the newest step, after counting the non-finite steps since the last call."""
        newest = None
        for _, metrics in self._pending:  # one after the other, as the devices may be many steps behind
            jax.block_until_ready(metrics["loss"])
            self._show()
        for step, metrics in jax.device_get(self._pending):
            newest = step, {name: float(value) for name, value in metrics.items()}
            if all(map(math.isfinite, newest[1].values())):
                self._skipped_in_a_row = 0
            else:
                self._skipped, self._skipped_in_a_row = self._skipped + 1, self._skipped_in_a_row + 1
            if self._skipped_in_a_row > self.settings.max_skipped_steps:
                raise self._not_finite(*newest)
        self._pending.clear()
        return newest

    def _not_finite(self, step: int, metrics: Mapping[str, float]) -> TrainingError:
        try:
            self.checkpoints.wait()
        except CheckpointError as error:
            self.progress.say(str(error))
        good = self.checkpoints.last_saved_step
        names = {"grad_norm": "gradient norm", "update_norm": "norm of the update"}
        found = [f"{names.get(k, k)} is {v}" for k, v in metrics.items() if not math.isfinite(v)]
        return TrainingError(
            f"step {step}: {', '.join(found)}; {self._skipped_in_a_row} consecutive steps are not finite "
            "(run.max_skipped_steps). "
            f"The last good checkpoint is {'none' if good is None else f'that of step {good}'}; "
            "try a lower optimizer.learning_rate, a longer warm-up or optimizer.grad_clip_norm"
        )

    def _log(self) -> None:
        newest = self._fetch()
        assert newest is not None, "called after a step"
        step, metrics = newest
        values = {f"train/{name}": value for name, value in metrics.items()}
        self._write(step, {**values, "train/skipped_steps": self._skipped})
        if new := self._skipped - self._skipped_before:
            self.progress.say(
                f"step {step}/{self.durations.total_steps}  {new} steps changed nothing: a loss, gradient or "
                f"update was not finite; in all {self._skipped}"
            )
            self._skipped_before = self._skipped
        self._write_times(step)

    def _write_times(self, step: int) -> None:
        # A separate record: times differ between equal runs, and the other records do not.
        self.progress.update(step)
        self._write(step, {"images_per_s": self.progress.images_per_s, "time_s": self.progress.time_s})

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float] | None:
        with self.watchdog.slow("an evaluation"), self.progress.seldom("evaluating"):
            results = {name: evaluate(state) for name, evaluate in self.evaluators.items()}
        for name, result in results.items():
            self._write(step, {f"{name}/{key}": value for key, value in result.items()})
            shown = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
            self.progress.say(f"step {step}/{self.durations.total_steps}  {name}: {shown}")
            if found := find_non_finite(result):
                self.progress.say(
                    f"step {step}  {name}: {found}; this evaluation is never the best of the run"
                )
        self.progress.restart(step)
        return dict(next(iter(results.values()))) if results else None

    def _save(self, step: int, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Starts a save, or after a skipped step delays it to the next step that is not skipped.

        A run whose steps are all skipped would otherwise replace all checkpoints by the same state.
        """
        with self.watchdog.slow("a save"):
            self._fetch()
            self._is_save_due = self._skipped_in_a_row > 0 and step < self.durations.total_steps
            if not self._is_save_due:
                if self.writer is not None:
                    self.writer.before_save()
                self.checkpoints.save(state, metrics, skipped=self._skips())

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, scalars)
