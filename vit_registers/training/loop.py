"""The training loop: steps, logging, evaluation, checkpoints, and an orderly stop."""

import dataclasses
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vit_registers.config import Config
from vit_registers.data.batch import Batch
from vit_registers.errors import TrainingError
from vit_registers.training.checkpoints import Checkpoints
from vit_registers.training.durations import Durations
from vit_registers.training.state import TrainState
from vit_registers.training.step import Step
from vit_registers.training.writers import MetricWriter, Progress


class StopRequest:
    """True once SIGTERM or SIGINT has come, inside its `with` block; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self._name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._name = signal.Signals(number).name

    def __bool__(self) -> bool:
        return bool(self._name)

    def __str__(self) -> str:
        return self._name


@dataclasses.dataclass
class Loop:
    """Runs a train step over batches until the last step. One use.

    `evaluators` are called with the state; the first one's top1 decides which checkpoint is best.
    Names in metrics.jsonl: train/loss, train/top1, ..., and <evaluator>/top1, ...
    """

    config: Config
    durations: Durations
    train_step: Step
    evaluators: Mapping[str, Callable[[TrainState], Mapping[str, float]]]
    checkpoints: Checkpoints
    writer: MetricWriter | None  # None on all processes but the first
    progress: Progress
    _pending: list[tuple[int, dict[str, jax.Array]]] = dataclasses.field(default_factory=list)

    def run(self, state: TrainState, batches: Iterator[Batch]) -> TrainState:
        """The state after the last step, or after the step in which a stop was asked for; both are saved.

        Raises TrainingError where the loss is no longer finite.
        """
        total, log_every = self.durations.total_steps, max(self.config.run.log_every_steps, 1)
        step = int(state.step)
        with StopRequest() as stop:
            while step < total and not stop:
                state, metrics = self.train_step(state, next(batches))
                step += 1
                self._pending.append((step, metrics))
                if step % log_every == 0 or step == total:
                    self._log()
                if self._is_evaluation(step):
                    self._save(state, self._evaluate(step, state))
                elif step % self.config.checkpoint.every_steps == 0:
                    self._save(state, None)
        if stop and step < total:
            if self.checkpoints.last_saved_step != step:
                self._save(state, None)
            self.checkpoints.wait()
            self.progress.say(f"{stop}: saved at step {step} of {total}; the same command goes on from there")
        self.checkpoints.wait()
        return state

    def _is_evaluation(self, step: int) -> bool:
        return step % self.durations.eval_every_steps == 0 or step == self.durations.total_steps

    def _fetch(self) -> tuple[int, dict[str, float]] | None:
        """The newest metrics, after a look at those of every step since the last look."""
        newest = None
        for step, metrics in [(step, jax.device_get(metrics)) for step, metrics in self._pending]:
            newest = step, {name: float(value) for name, value in metrics.items()}
            if not math.isfinite(newest[1]["loss"]) or not math.isfinite(newest[1]["grad_norm"]):
                good = self.checkpoints.last_saved_step
                raise TrainingError(
                    f"step {step}: loss is {newest[1]['loss']}, gradient norm {newest[1]['grad_norm']}. "
                    f"The last good checkpoint is {'none' if good is None else f'that of step {good}'}; "
                    "try a lower optimizer.learning_rate, a longer warm-up or optimizer.grad_clip_norm"
                )
        self._pending.clear()
        return newest

    def _log(self) -> None:
        step, metrics = self._fetch()
        self.progress.update(step, metrics["loss"])
        self._write(step, {f"train/{name}": value for name, value in metrics.items()})
        # Apart, as times are not functions of the step and these lines are to be comparable.
        self._write(step, {"images_per_s": self.progress.images_per_s, "time_s": self.progress.time_s})

    def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
        results = {name: evaluate(state) for name, evaluate in self.evaluators.items()}
        for name, result in results.items():
            self._write(step, {f"{name}/{key}": value for key, value in result.items()})
            shown = "  ".join(f"{key} {value:.4g}" for key, value in result.items())
            self.progress.say(f"step {step}/{self.durations.total_steps}  {name}: {shown}")
        self.progress.restart(step)
        return dict(next(iter(results.values())))

    def _save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        self._fetch()  # never save a state whose loss was not finite
        self.checkpoints.save(state, metrics)

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self.writer is not None:
            self.writer.write(step, scalars)
