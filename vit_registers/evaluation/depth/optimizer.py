"""The optimiser of depth training: AdamW, whose rate and first beta are tables over the steps."""

import jax.numpy as jnp
import numpy as np
import optax

from vit_registers.config import DepthSettings

_FIRST_SHARE, _LAST_SHARE = 1e-3, 1e-8  # of the peak rate, at the start of the warm-up and at the end
_B1_LEAST, _B1_MOST = 0.85, 0.95
_B1_FALLING = 0.3  # the share of the steps in which b1 falls; it rises in the rest


def learning_rates(settings: DepthSettings, num_steps: int) -> np.ndarray:
    """rate_N of each step, float64.

    Half a cosine over all steps, from the peak to 1e-8 of it, which a factor that grows linearly from 0.001
    to 1 multiplies during the warm-up, as mmcv's CosineAnnealing with a linear warm-up.
    """
    step_N = np.arange(num_steps)
    regular_N = _cosine(1.0, _LAST_SHARE, step_N / num_steps)
    num_warmup = round(settings.warmup_share * num_steps)
    left_N = np.maximum(1 - step_N / num_warmup, 0) if num_warmup else np.zeros(num_steps)
    assert settings.learning_rate is not None
    return settings.learning_rate * regular_N * (1 - left_N * (1 - _FIRST_SHARE))


def first_betas(num_steps: int) -> np.ndarray:
    """b1_N of each step, float64: one cycle 0.95 -> 0.85 -> 0.95 of two half cosines.

    Equals torch's OneCycleLR with cycle_momentum, and mmcv's OneCycle of the momentum.
    """
    step_N, middle = np.arange(num_steps), _B1_FALLING * num_steps - 1
    last = num_steps - 1
    falling_N = _cosine(_B1_MOST, _B1_LEAST, step_N / middle) if middle > 0 else np.full(num_steps, _B1_LEAST)
    rising_N = _cosine(_B1_LEAST, _B1_MOST, (step_N - middle) / max(last - middle, 1))
    return np.where(step_N <= middle, falling_N, rising_N)


def _cosine(start: float, end: float, share_N: np.ndarray) -> np.ndarray:
    return end + 0.5 * (start - end) * (1 + np.cos(np.pi * share_N))


def depth_optimizer(settings: DepthSettings, num_steps: int) -> optax.GradientTransformation:
    """The optimiser of the head: gradients clipped by their norm, then AdamW. Kernel and bias decay."""

    def table(value_N: np.ndarray) -> optax.Schedule:
        constant_N = jnp.asarray(value_N, jnp.float32)
        return lambda step: jnp.take(constant_N, step, mode="clip")

    adamw = optax.inject_hyperparams(optax.adamw, static_args=("mask", "nesterov"))(
        learning_rate=table(learning_rates(settings, num_steps)),
        b1=table(first_betas(num_steps)),
        weight_decay=settings.weight_decay,
    )
    return optax.chain(optax.clip_by_global_norm(settings.grad_clip_norm), adamw)
