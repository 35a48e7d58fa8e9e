"""Learning-rate schedules: tables that are computed once in float64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_registers.config import Optimizer, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations
from vit_registers.training.tables import cosine_table


def _warmup(optimizer: Optimizer, length: int) -> np.ndarray:
    """`length` rates on a line from warmup_learning_rate, at 0, towards the peak, which is at `length`."""
    start, peak = optimizer.warmup_learning_rate, optimizer.learning_rate
    return start + (peak - start) * np.arange(length) / max(length, 1)


def _half_cosine(optimizer: Optimizer, length: int) -> np.ndarray:
    """`length` + 1 rates on half a cosine, from the peak to min_learning_rate."""
    least, peak = optimizer.min_learning_rate, optimizer.learning_rate
    # sin² of the remaining share equals (1 + cos) / 2, without the cancellation that loses digits.
    left = np.arange(length, -1, -1) / length
    return least + (peak - least) * np.sin(0.5 * np.pi * left) ** 2


def cosine(optimizer: Optimizer, durations: Durations) -> tuple[np.ndarray, int]:
    """Linear from warmup_learning_rate at step 0 to the peak, then half a cosine over the remaining steps.

    Equals the cosine decay of big_vision (google-research/big_vision), and torch's LambdaLR followed by
    CosineAnnealingLR.
    """
    warmup = durations.warmup_steps
    rates = (_warmup(optimizer, warmup), _half_cosine(optimizer, durations.total_steps - warmup))
    return np.concatenate(rates), 1


def cosine_from_peak(optimizer: Optimizer, durations: Durations) -> tuple[np.ndarray, int]:
    """As cosine, but the warm-up reaches the peak, which is thus used twice, as in DINOv2's code.

    The warm-up starts from 0. The last rate is one step before min_learning_rate.
    """
    return cosine_table(
        start=optimizer.learning_rate,
        end=optimizer.min_learning_rate,
        num_steps=durations.total_steps,
        warmup_steps=durations.warmup_steps,
    ), 1


def cosine_per_epoch(optimizer: Optimizer, durations: Durations) -> tuple[np.ndarray, int]:
    """One rate per epoch, as in DeiT (timm's CosineLRScheduler with t_in_epochs and without warmup_prefix).

    f(t) is the warm-up's line for t < W epochs, and then the cosine over all T epochs, which starts a little
    below the peak there. DeiT updates the rate after each epoch, so epoch e trains at f(max(e - 1, 0)): the
    first rate is used for two epochs, and the last one never.

    Raises ConfigError if the warm-up or the run are not whole epochs of whole steps.
    """
    setting, steps = "optimizer.schedule='cosine_per_epoch'", durations.steps_per_epoch
    if steps != round(steps):
        raise ConfigError(
            f"{setting}: an epoch is {steps:.10g} steps: must be whole steps; set data.drop_last=True"
        )
    lengths = {"run.total": durations.total_steps, "optimizer.warmup": durations.warmup_steps}
    for name, length in lengths.items():
        if length % steps:
            raise ConfigError(
                f"{setting}: {name} is {length} steps, or {length / steps:.6g} epochs: must be whole epochs; "
                f"set {name}_epochs"
            )
    total, warmup = (round(length / steps) for length in lengths.values())
    f = np.concatenate((_warmup(optimizer, warmup), _half_cosine(optimizer, total)[warmup:]))
    return f[np.maximum(np.arange(total) - 1, 0)], round(steps)


def constant(optimizer: Optimizer, durations: Durations) -> tuple[np.ndarray, int]:
    """Linear from warmup_learning_rate at step 0 to the peak, then the peak."""
    return np.append(_warmup(optimizer, durations.warmup_steps), optimizer.learning_rate), 1


# Each function returns (rates in float64, number of steps of each rate). The last rate has no end.
SCHEDULES: dict[str, Callable[[Optimizer, Durations], tuple[np.ndarray, int]]] = {
    "cosine": cosine,
    "cosine_from_peak": cosine_from_peak,
    "cosine_per_epoch": cosine_per_epoch,
    "constant": constant,
}


def _check(optimizer: Optimizer) -> None:
    check_section("optimizer", optimizer)
    peak = optimizer.learning_rate
    for name in ("warmup_learning_rate", "min_learning_rate"):
        rate = getattr(optimizer, name)
        if rate > peak:
            raise ConfigError(f"optimizer.{name}={rate}: must be <= optimizer.learning_rate={peak}")
    if optimizer.schedule == "constant" and optimizer.min_learning_rate:
        raise ConfigError(
            f"optimizer.min_learning_rate={optimizer.min_learning_rate}: a constant rate does not reach it: "
            "must be 0.0, or set optimizer.schedule='cosine'"
        )


def schedule(optimizer: Optimizer, durations: Durations) -> optax.Schedule:
    """step -> learning rate, a float32 scalar: the float32 nearest to the rate in float64.

    The rates are a table, because a cosine computed in float32 has no correct digit near its end. The table
    is a constant of the compiled step, and takes 4 bytes per step (per epoch for cosine_per_epoch, per step
    of the warm-up for constant): 0.4 MB for 111,477 steps. Steps beyond the end have the last rate.

    Raises ConfigError for an unknown name, for rates that contradict each other, and for lengths that the
    schedule does not support.
    """
    make = lookup(SCHEDULES, optimizer.schedule, "optimizer.schedule")
    _check(optimizer)
    rates, steps_each = make(optimizer, durations)
    table = rates.astype(np.float32)

    def rate(step: jax.typing.ArrayLike) -> jax.Array:
        return jnp.take(table, step // steps_each, mode="clip")

    return rate
