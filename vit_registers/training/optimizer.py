"""Learning-rate schedule, AdamW and its decay mask."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_registers.config import Optimizer, lookup
from vit_registers.errors import ConfigError
from vit_registers.training.durations import Durations

MU_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def schedule(optimizer: Optimizer, durations: Durations) -> optax.Schedule:
    """step -> learning rate: linear from 0 over the warm-up steps, then half a cosine to 0 at the end.

    The first step has rate 0 where there is a warm-up; the cosine runs over the steps after it.
    """
    peak, warmup = optimizer.learning_rate, durations.warmup_steps
    cosine = optax.cosine_decay_schedule(peak, durations.total_steps - warmup)
    if warmup == 0:
        return cosine
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), cosine], [warmup])


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: kernels; not biases, norms, positions or tokens."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(optimizer: Optimizer, durations: Durations) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW: p -= rate * (adam + weight_decay * p), decay on kernels only."""
    if optimizer.learning_rate <= 0.0:
        raise ConfigError(f"optimizer.learning_rate={optimizer.learning_rate}: want > 0")
    clip = optimizer.grad_clip_norm
    if clip is not None and clip <= 0.0:
        raise ConfigError(f"optimizer.grad_clip_norm={clip}: want > 0, or None for no clipping")
    return optax.chain(
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        optax.adamw(
            schedule(optimizer, durations),
            b1=optimizer.b1,
            b2=optimizer.b2,
            eps=optimizer.eps,
            mu_dtype=lookup(MU_DTYPES, optimizer.mu_dtype, "optimizer.mu_dtype"),
            weight_decay=optimizer.weight_decay,
            mask=decay_mask,
        ),
    )
