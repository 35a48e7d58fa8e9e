"""Lengths of a run, its warm-up and its epochs in optimiser steps."""

import dataclasses

from vit_registers.config import Data, Optimizer, Run, check_section
from vit_registers.config.rules import MAX_STEPS
from vit_registers.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Durations:
    """Lengths in optimiser steps."""

    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    steps_per_epoch: float  # whole if data.drop_last is set, or if the batches divide the split

    def evaluations_until(self, step: int) -> list[int]:
        """The steps up to `step`, inclusive, after which the run evaluates."""
        every, total = self.eval_every_steps, self.total_steps
        return sorted({*range(every, step + 1, every), *([total] if step >= total else [])})


def durations(run: Run, optimizer: Optimizer, data: Data, num_train_examples: int) -> Durations:
    """The lengths of a run in steps; lengths in epochs are rounded to the nearest step.

    An epoch shows every example once, and may end within a batch. With data.drop_last it has whole batches
    only. Raises ConfigError for lengths that are unset, set twice or invalid.
    """
    check_section("run", run)
    check_section("optimizer", optimizer)
    examples_per_epoch, batch_size = num_train_examples, data.batch_size
    if data.drop_last:
        examples_per_epoch -= num_train_examples % batch_size
        if examples_per_epoch == 0:
            raise ConfigError(
                f"data.batch_size={batch_size} is more than the {num_train_examples} training examples: with "
                "data.drop_last=True an epoch has no batch"
            )

    def to_steps(name: str, steps: int | None, epochs: float | None, default: int | None) -> int:
        if steps is not None and epochs is not None:
            raise ConfigError(f"{name}_steps={steps} and {name}_epochs={epochs} are both set: keep one")
        if epochs is not None:
            steps = round(epochs * examples_per_epoch / batch_size)
        if steps is None:
            steps = default
        if steps is None:
            raise ConfigError(f"{name}_steps and {name}_epochs are both unset: set one")
        if steps > MAX_STEPS:
            raise ConfigError(f"{name} is {steps:.6g} steps: must be <= {MAX_STEPS:,}")
        return steps

    total = to_steps("run.total", run.total_steps, run.total_epochs, None)
    warmup = to_steps(
        "optimizer.warmup", optimizer.warmup_steps, optimizer.warmup_epochs, _shared(optimizer, total)
    )
    evaluation = to_steps("run.eval_every", run.eval_every_steps, run.eval_every_epochs, total)
    if total < 1:
        raise ConfigError(f"run.total_steps={total}: must be >= 1")
    if warmup >= total:
        raise ConfigError(
            f"optimizer.warmup is {warmup} steps of {total}: must be fewer than the run has; set "
            "optimizer.warmup_steps too, or give the length as an argument of the run card, which derives it"
        )
    return Durations(
        total_steps=total,
        warmup_steps=warmup,
        eval_every_steps=max(evaluation, 1),
        steps_per_epoch=examples_per_epoch / batch_size,
    )


def _shared(optimizer: Optimizer, total_steps: int) -> int:
    """The steps of the warm-up by optimizer.warmup_share; 0 without it."""
    share = optimizer.warmup_share
    if share is None:
        return 0
    for name in ("warmup_steps", "warmup_epochs"):
        if (other := getattr(optimizer, name)) is not None:
            raise ConfigError(
                f"optimizer.{name}={other} and optimizer.warmup_share={share} are both set: keep one"
            )
    return round(share * total_steps)
