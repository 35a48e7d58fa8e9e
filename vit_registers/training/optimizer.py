"""Optimisers: AdamW, LAMB and schedule-free AdamW, and what they decay."""

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
    """p -= rate * (adam + weight_decay * p), decay on kernels only (arXiv:1711.05101, as torch has it)."""
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
    """LAMB (arXiv:1904.00962) as NVIDIA apex's FusedLAMB has it, which DeiT-III trains with.

    With u = adam + weight_decay * p, kernels get p -= rate * |p| / |u| * u, where the ratio of norms is 1 if
    one of them is 0, and is not clamped; the other leaves, which are not decayed, p -= rate * adam. A norm is
    over one leaf: q, k and v of a block are one kernel here, as they are one tensor in DeiT. optax.lamb is
    another: it takes the ratio on every leaf.

    Raises ConfigError without weight decay, where apex takes no ratio at all.
    """
    if not optimizer.weight_decay:
        raise ConfigError(
            f"optimizer.weight_decay={optimizer.weight_decay}: lamb takes its ratio where there is decay: "
            "want > 0, or optimizer.name='adamw'"
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
    """Schedule-free AdamW (arXiv:2405.15682). The parameters that it trains are y; those that count are x.

    z -= rate * (g / (sqrt(v) + eps) + weight_decay * y), v being Adam's and bias-corrected, decay on kernels
    only; x += c * (z - x) with c = rate² / (sum of rate² so far); y = b1 * x + (1 - b1) * z. A falling rate
    would count as the highest so far, hence a constant one. averages.py keeps x.

    Raises ConfigError where other settings do not go with it.
    """
    if optimizer.schedule != "constant":
        raise ConfigError(f"optimizer.schedule='{optimizer.schedule}': schedule_free_adamw wants 'constant'")
    if optimizer.ema_decay is not None:
        raise ConfigError(
            f"optimizer.ema_decay={optimizer.ema_decay}: schedule_free_adamw has its own average: want None"
        )
    if optimizer.mu_dtype != "float32":
        raise ConfigError(
            f"optimizer.mu_dtype='{optimizer.mu_dtype}': schedule_free_adamw has no first moment; "
            "leave it at 'float32'"
        )
    if optimizer.b1 == 0.0:
        raise ConfigError("optimizer.b1=0.0: schedule_free_adamw trains nothing of its average: want > 0")
    step = optax.chain(
        optax.scale_by_rms(decay=optimizer.b2, eps=optimizer.eps, eps_in_sqrt=False, bias_correction=True),
        optax.add_decayed_weights(optimizer.weight_decay, decay_mask),
        optax.scale_by_learning_rate(rates),
    )
    # optax counts from 1 here, and from 0 for the step itself: weigh each z by the rate that led to it.
    return optax.contrib.schedule_free(step, learning_rate=lambda count: rates(count - 1), b1=optimizer.b1)


OPTIMIZERS: dict[str, Callable[[Optimizer, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": adamw,
    "lamb": lamb,
    "schedule_free_adamw": schedule_free_adamw,
}


def make_optimizer(optimizer: Optimizer, durations: Durations) -> optax.GradientTransformation:
    """The optimiser of that name, after gradients whose global norm is above the limit are scaled to it.

    Raises ConfigError for settings that cannot work, alone or together.
    """
    make = lookup(OPTIMIZERS, optimizer.name, "optimizer.name")
    check_section("optimizer", optimizer)
    clip = optimizer.grad_clip_norm
    return optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        make(optimizer, schedule(optimizer, durations)),
    )
