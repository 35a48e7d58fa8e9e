"""Unit vectors, and LayerNorm in float32 with a backward pass that is written out.

Differentiated by JAX, the gradient of the two-pass variance is a sum of several terms, and XLA fuses the
chain of residual gradients before it into each of them: on a CPU, work grows with the square of the depth.
Here the gradient of the input is one expression of the stored mean and reciprocal deviation of each token.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from vit_registers.models.attention.mesh import platform


class LayerNorm(nnx.LayerNorm):
    """scale * (x - mean) / sqrt(variance + epsilon) + bias over the last axis (arXiv:1607.06450).

    Computed and returned in float32. The variance takes two passes, which tokens far from zero require.
    """

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The normalised x, float32, of the shape of x."""
        assert self.scale is not None and self.bias is not None
        return _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)

    def parts(self, parts_BxD: Sequence[jax.Array]) -> list[jax.Array]:
        """The parts of norm(sum of `parts_BxD`) - bias, each normalised with the statistics of the sum."""
        assert self.scale is not None
        total_BxD = functools.reduce(jnp.add, parts_BxD)
        _, rstd_Bx1 = _statistics(total_BxD, self.epsilon)
        scale_1xD = self.scale[...][None]
        return [(part - part.mean(-1, keepdims=True)) * rstd_Bx1 * scale_1xD for part in parts_BxD]


class NoNorm(nnx.Module):
    """The identity, in float32, in the place of a LayerNorm; it has no parameters."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """x in float32."""
        return x.astype(jnp.float32)


def _statistics(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """(mean, 1 / sqrt(variance + epsilon)) over the last axis, which stays with length 1."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    return mean, jax.lax.rsqrt(jnp.square(x - mean).mean(axis=-1, keepdims=True) + epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    return _forward(x, scale_D, bias_D, epsilon)[0]


def _forward(
    x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean, rstd = _statistics(x, epsilon)
    shape = (1,) * (x.ndim - 1) + scale_D.shape
    normalised = (x.astype(jnp.float32) - mean) * rstd
    out = normalised * scale_D.reshape(shape) + bias_D.reshape(shape)
    return out, (x, mean, rstd, scale_D)


def _backward(epsilon: float, residuals: tuple[jax.Array, ...], d_out: jax.Array) -> tuple[jax.Array, ...]:
    del epsilon
    x, mean, rstd, scale_D = residuals
    # On a GPU, XLA would otherwise compute both again inside the sums over tokens, which it cannot fuse with
    # that, and write their terms to memory in float32.
    mean, rstd = jax.lax.optimization_barrier((mean, rstd))
    normalised = (x.astype(jnp.float32) - mean) * rstd
    if platform() == "cpu":
        # XLA would otherwise write `scale`, repeated for all tokens, to memory before the forward pass of the
        # next block, since nothing that comes later is required for it.
        d_out, scale_D = jax.lax.optimization_barrier((d_out, scale_D))
    tokens = tuple(range(x.ndim - 1))
    d_scale_D, d_bias_D = (d_out * normalised).sum(axis=tokens), d_out.sum(axis=tokens)
    d_out = d_out * scale_D.reshape((1,) * (x.ndim - 1) + scale_D.shape)
    along = (d_out * normalised).mean(axis=-1, keepdims=True)
    d_x = rstd * (d_out - d_out.mean(axis=-1, keepdims=True) - normalised * along)
    return d_x.astype(x.dtype), d_scale_D, d_bias_D


_layer_norm.defvjp(_forward, _backward)


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) over the last axis, as torch.nn.functional.normalize; its gradient is finite at 0."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, eps * eps))
