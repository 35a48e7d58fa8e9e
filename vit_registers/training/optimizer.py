"""Optimisers: AdamW, LAMB and schedule-free AdamW, and the parameters that weight decay applies to."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import Optimizer, check_section, lookup
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations
from vit_registers.training.schedules import schedule

MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels; not biases, norms, positions or tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def adamw(optimizer: Optimizer, rates: optax.Schedule) -> optax.GradientTransformation:
    """AdamW: p -= rate * (adam + weight_decay * p), decay on kernels only (arXiv:1711.05101, as in torch)."""
    return optax.adamw(
        rates,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        mu_dtype=lookup(MU_DTYPES, optimizer.mu_dtype, "optimizer.mu_dtype"),
        weight_decay=optimizer.weight_decay,
        mask=decay_mask,
    )


def lamb(optimizer: Optimizer, rates: optax.Schedule) -> optax.GradientTransformation:
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
        optax.add_decayed_weights(optimizer.weight_decay, decay_mask),
        optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        optax.scale_by_learning_rate(rates),
    )


def schedule_free_adamw(optimizer: Optimizer, rates: optax.Schedule) -> optax.GradientTransformation:
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
        optax.add_decayed_weights(optimizer.weight_decay, decay_mask),
        optax.scale_by_learning_rate(rates),
    )
    # optax counts from 1 here, but from 0 for the step itself. Each z is weighed by the rate that gave it.
    return optax.contrib.schedule_free(step, learning_rate=lambda count: rates(count - 1), b1=optimizer.b1)


OPTIMIZERS: dict[str, Callable[[Optimizer, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": adamw,
    "lamb": lamb,
    "schedule_free_adamw": schedule_free_adamw,
}


def make_optimizer(optimizer: Optimizer, durations: Durations) -> optax.GradientTransformation:
    """The optimiser `optimizer.name`, preceded by clipping of the gradients' global norm.

    Raises ConfigError for invalid settings and combinations.
    """
    make = lookup(OPTIMIZERS, optimizer.name, "optimizer.name")
    check_section("optimizer", optimizer)
    clip = optimizer.grad_clip_norm
    return optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        make(optimizer, schedule(optimizer, durations)),
    )
