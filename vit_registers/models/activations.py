"""Activations with backward passes that are written out: they store their input only, and compute in float32.

Differentiated by JAX, an activation also stores intermediate values, such as the tanh of gelu_tanh, which are
as large as the widest array of a block. Computing them again costs less than writing and reading them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_registers.models.attention.mesh import platform

_TANH_SCALE, _TANH_CUBIC = math.sqrt(2 / math.pi), 0.044715  # arXiv:1606.08415, section 2
_QUICK = 1.702
_PHI_0 = 1 / math.sqrt(2 * math.pi)  # the density of a standard normal at 0


def _gelu_slope(x: jax.Array) -> jax.Array:
    """The derivative of x P(N(0, 1) < x)."""
    return 0.5 * jax.lax.erfc(-x * math.sqrt(0.5)) + x * _PHI_0 * jnp.exp(-0.5 * x * x)


def _gelu_tanh_slope(x: jax.Array) -> jax.Array:
    # (1 + tanh(u)) / 2 = sigmoid(2 u), which is exact in its tails; 1 - tanh(u)**2 is not.
    twice = 2 * _TANH_SCALE * (x + _TANH_CUBIC * x**3)
    twice_slope = 2 * _TANH_SCALE * (1 + 3 * _TANH_CUBIC * x * x)
    small = jnp.exp(-jnp.abs(twice))
    share = jnp.where(twice > 0, 1.0, small) / (1 + small)
    return share + x * twice_slope * small / jnp.square(1 + small)


def _quick_gelu_slope(x: jax.Array) -> jax.Array:
    gate = jax.nn.sigmoid(_QUICK * x)
    return gate * (1 + _QUICK * x * (1 - gate))


def _with_slope(
    apply: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """`apply`, an activation, with the derivative `slope`; both elementwise. Stores the input."""

    def backward(x: jax.Array, d_out: jax.Array) -> tuple[jax.Array]:
        if platform() == "cpu":
            # XLA would otherwise store parts of the slope that the forward pass computes, as large as x.
            x = jax.lax.optimization_barrier(x)
        return ((d_out.astype(jnp.float32) * slope(x.astype(jnp.float32))).astype(x.dtype),)

    activation = jax.custom_vjp(apply)
    activation.defvjp(lambda x: (apply(x), x), backward)
    return activation


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _with_slope(functools.partial(jax.nn.gelu, approximate=False), _gelu_slope),
    "gelu_tanh": _with_slope(functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh_slope),
    "quick_gelu": _with_slope(lambda x: x * jax.nn.sigmoid(_QUICK * x), _quick_gelu_slope),
}


@jax.custom_vjp
def silu_gated(gate: jax.Array, value: jax.Array) -> jax.Array:
    """silu(gate) * value (SwiGLU, arXiv:2002.05202). Stores gate and value."""
    return jax.nn.silu(gate) * value


def _silu_gated_forward(gate: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return silu_gated(gate, value), (gate, value)


def _silu_gated_backward(stored: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[Any, Any]:
    gate, value, d_out = (x.astype(jnp.float32) for x in (*stored, d_out))
    share = jax.nn.sigmoid(gate)
    d_gate = d_out * value * share * (1 + gate * (1 - share))
    return d_gate.astype(stored[0].dtype), (d_out * gate * share).astype(stored[1].dtype)


silu_gated.defvjp(_silu_gated_forward, _silu_gated_backward)
