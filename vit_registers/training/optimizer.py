"""Optimisers: AdamW, LAMB and schedule-free AdamW, with rates and weight decay by parameter."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_registers.config import Optimizer, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations
from vit_registers.training.parameter_groups import decay_mask, delayed_mask, has_groups, rate_multipliers
from vit_registers.training.schedules import schedule
from vit_registers.training.tables import cosine_table

MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Rates(NamedTuple):
    """What changes over a run, as functions of the number of updates."""

    learning: optax.Schedule
    decay: optax.ScalarOrSchedule  # a number if it is constant
    delay_steps: int  # of optimizer.delayed


def _decayed(optimizer: Optimizer, rates: Rates) -> optax.GradientTransformation:
    """Adds weight decay to the leaves of optimizer.decayed."""
    return optax.add_decayed_weights(rates.decay, functools.partial(decay_mask, decayed=optimizer.decayed))


def _scaled(optimizer: Optimizer, rates: Rates) -> list[optax.GradientTransformation]:
    """Multiplies updates by minus the learning rate, and by the multiple of each parameter."""
    scale = optax.scale_by_learning_rate(rates.learning)
    if not has_groups(optimizer):
        return [scale]

    def multiply(updates: Any, params: Any) -> Any:
        return jax.tree.map(jnp.multiply, updates, rate_multipliers(params, optimizer))

    parts = [optax.stateless(multiply), scale]
    if optimizer.delayed:
        parts.append(_delayed(optimizer, rates.delay_steps))
    return parts


def _delayed(optimizer: Optimizer, delay_steps: int) -> optax.GradientTransformation:
    """Sets the updates of optimizer.delayed to 0 in the first steps; the moments follow the gradients."""
    after = optax.scale_by_schedule(lambda count: jnp.asarray(jnp.asarray(count) >= delay_steps, jnp.float32))
    return optax.masked(after, functools.partial(delayed_mask, optimizer=optimizer))


def adamw(optimizer: Optimizer, rates: Rates) -> optax.GradientTransformation:
    """AdamW: p -= rate * (adam + weight_decay * p) (arXiv:1711.05101, as in torch)."""
    return optax.chain(
        optax.scale_by_adam(
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            mu_dtype=lookup(MU_DTYPES, optimizer.mu_dtype, "optimizer.mu_dtype"),
        ),
        _decayed(optimizer, rates),
        *_scaled(optimizer, rates),
    )


def lamb(optimizer: Optimizer, rates: Rates) -> optax.GradientTransformation:
    """LAMB (arXiv:1904.00962) as in NVIDIA apex's FusedLAMB, which DeiT-III uses.

    Kernels: p -= rate * |p| / |u| * u with u = adam + weight_decay * p. The ratio of norms is not clamped,
    and is 1 if one of the norms is 0. Other leaves, which are not decayed: p -= rate * adam. A norm is that
    of one leaf; q, k and v of a block are one kernel, as they are one tensor in DeiT. optax.lamb differs: it
    uses the ratio for every leaf.

    Raises ConfigError without weight decay: apex uses no ratio then.
    """
    if not optimizer.weight_decay:
        raise ConfigError(
            f"optimizer.weight_decay={optimizer.weight_decay}: lamb uses its trust ratio only with weight "
            "decay: must be > 0, or set optimizer.name='adamw'"
        )
    return optax.chain(
        optax.scale_by_adam(
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            mu_dtype=lookup(MU_DTYPES, optimizer.mu_dtype, "optimizer.mu_dtype"),
        ),
        _decayed(optimizer, rates),
        optax.masked(optax.scale_by_trust_ratio(), functools.partial(decay_mask, decayed=optimizer.decayed)),
        *_scaled(optimizer, rates),
    )


def schedule_free_adamw(optimizer: Optimizer, rates: Rates) -> optax.GradientTransformation:
    """Schedule-free AdamW (arXiv:2405.15682). It trains parameters y; the model is their average x.

    z -= rate * (g / (sqrt(v) + eps) + weight_decay * y) with Adam's v, bias-corrected, and decay on kernels
    only; x += c * (z - x) with c = rate² / (sum of rate² so far); y = b1 * x + (1 - b1) * z. averages.py
    computes x. optax weighs by the highest rate so far, so a falling rate is refused.

    Raises ConfigError for settings that it does not support.
    """
    if optimizer.schedule != "constant":
        raise ConfigError(
            f"optimizer.schedule='{optimizer.schedule}': must be 'constant' with schedule_free_adamw"
        )
    if optimizer.ema_decay is not None:
        raise ConfigError(
            f"optimizer.ema_decay={optimizer.ema_decay}: schedule_free_adamw averages already: must be None"
        )
    if optimizer.mu_dtype != "float32":
        raise ConfigError(
            f"optimizer.mu_dtype='{optimizer.mu_dtype}': schedule_free_adamw has no first moment: "
            "must be 'float32'"
        )
    if optimizer.b1 == 0.0:
        raise ConfigError("optimizer.b1=0.0: schedule_free_adamw would not use its average: must be > 0")
    step = optax.chain(
        optax.scale_by_rms(decay=optimizer.b2, eps=optimizer.eps, eps_in_sqrt=False, bias_correction=True),
        _decayed(optimizer, rates),
        *_scaled(optimizer, rates),
    )
    # optax counts from 1 here, but from 0 for the step itself. Each z is weighed by the rate that gave it.
    return optax.contrib.schedule_free(
        step, learning_rate=lambda count: rates.learning(count - 1), b1=optimizer.b1
    )


OPTIMIZERS: dict[str, Callable[[Optimizer, Rates], optax.GradientTransformation]] = {
    "adamw": adamw,
    "lamb": lamb,
    "schedule_free_adamw": schedule_free_adamw,
}


def make_optimizer(optimizer: Optimizer, durations: Durations) -> optax.GradientTransformation:
    """The optimiser `optimizer.name`, preceded by clipping of the gradients' norm.

    Raises ConfigError for invalid settings and combinations.
    """
    make = lookup(OPTIMIZERS, optimizer.name, "optimizer.name")
    check_section("optimizer", optimizer)
    delay_steps = round(optimizer.delay_share * durations.total_steps)
    rates = Rates(schedule(optimizer, durations), _decay(optimizer, durations), delay_steps)
    parts = [_clip(optimizer), make(optimizer, rates)]
    if optimizer.frozen:  # with schedule-free learning, rounding changes them
        parts.append(optax.stateless(functools.partial(_without_frozen, optimizer)))
    return optax.chain(*parts)


def bounds_update(optimizer: Optimizer) -> bool:
    """Whether every update of these settings is finite where the norm of its gradient is.

    The squares of a gradient with a finite norm do not overflow: its entries are at most g = 1.9e19. So are
    the first moments, which are weighted means of gradients. A step of AdamW changes a parameter by at most
    rate * g / eps, beside the weight decay, which shrinks it. Thus parameters stay below 2e36 in MAX_STEPS
    steps if rate / eps <= 1e9. Updates of LAMB are as large as the parameters, so they have no such bound.
    """
    rate = optimizer.learning_rate * max(1.0, optimizer.head_rate) * max(1.0, optimizer.patch_embed_rate)
    decay = max(optimizer.weight_decay, optimizer.weight_decay_end or 0.0)
    return optimizer.name == "adamw" and rate <= 1e9 * optimizer.eps and decay <= 1.0 and rate * decay <= 1.0


def _without_frozen(optimizer: Optimizer, updates: Any, params: Any) -> Any:
    multiples = rate_multipliers(params, optimizer)
    return jax.tree.map(lambda u, rate: u if rate else jnp.zeros_like(u), updates, multiples)


def _decay(optimizer: Optimizer, durations: Durations) -> optax.ScalarOrSchedule:
    """The weight decay: a number, or a table over the run where it has an end."""
    if optimizer.weight_decay_end is None:
        return optimizer.weight_decay
    table = cosine_table(
        start=optimizer.weight_decay, end=optimizer.weight_decay_end, num_steps=durations.total_steps
    ).astype(np.float32)
    return lambda count: jnp.take(table, count, mode="clip")


def _clip(optimizer: Optimizer) -> optax.GradientTransformation:
    limit = optimizer.grad_clip_norm
    make = lookup(_CLIPS, optimizer.grad_clip_per, "optimizer.grad_clip_per")
    return optax.identity() if limit is None else make(limit)


def _clip_modules(limit: float) -> optax.GradientTransformation:
    """Clips the norm of each module of the parameters: the backbone, and each head."""

    def clip(updates: Any, params: Any) -> Any:
        del params
        return {name: _clipped(module, limit) for name, module in updates.items()}

    return optax.stateless(clip)


def _clipped(tree: Any, limit: float) -> Any:
    scale = jnp.minimum(1.0, limit / jnp.maximum(optax.tree.norm(tree), jnp.finfo(jnp.float32).tiny))
    return jax.tree.map(lambda g: g * scale, tree)


_CLIPS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "all": optax.clip_by_global_norm,
    "module": _clip_modules,
}
