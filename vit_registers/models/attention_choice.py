"""The back end that model.attention='auto' selects, once it has computed a small case correctly."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Model
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.attention.cudnn import MAX_HEAD_SIZE
from vit_registers.models.attention.mesh import platform
from vit_registers.models.blocks import DTYPES, dims
from vit_registers.models.vit import static_attention, token_layout

# Largest difference from xla in float32, as a share of the largest value: 16-bit results are within a third.
TOLERANCE = 0.03


def choose_attention(model: Model) -> tuple[Model, str | None]:
    """The model with a back end instead of "auto", and why the fastest one is not used; None if it is.

    The fastest is cudnn for bfloat16 on a GPU where the head size fits, and xla otherwise. Another one than
    xla has to give the values and gradients of xla for two examples of the model's tokens, heads, mask and
    bias, on this process's first device. Models with another attention are returned unchanged.
    """
    if model.attention != "auto":
        return model, None
    name = _fastest(model)
    obstacle = None if name == "xla" else _obstacle(model, name)
    return dataclasses.replace(model, attention="xla" if obstacle else name), obstacle


def _fastest(model: Model) -> str:
    sizes = dims(model)
    head_size = sizes.width // sizes.num_heads
    fits = head_size % 8 == 0 and head_size <= MAX_HEAD_SIZE and model.dtype == "bfloat16"
    return "cudnn" if platform() == "gpu" and fits and model.remat != "attention" else "xla"


def _obstacle(model: Model, name: str) -> str | None:
    """Why the back end cannot be used, in one line; None if it computes what xla computes."""
    sizes, layout = dims(model), token_layout(model)
    mask_TxT, bias_NxTxT = static_attention(model, layout)
    shape = (2, layout.num_tokens, sizes.num_heads, sizes.width // sizes.num_heads)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, shape, DTYPES[model.dtype]) for key in keys]

    def results(attend: Callable[..., jax.Array], dtype: jnp.dtype) -> list[np.ndarray]:
        """The output and the gradients of q, k and v."""

        @jax.jit
        def compute(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> tuple[jax.Array, ...]:
            fixed = functools.partial(attend, mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT)
            out, backward = jax.vjp(fixed, q, k, v)
            return out, *backward(d_out)

        return [np.asarray(x, np.float32) for x in compute(*(one.astype(dtype) for one in inputs))]

    try:
        found = results(BACKENDS[name], DTYPES[model.dtype])
    except Exception as error:  # of the compiler, the kernel or the driver
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"{name} fails on this device: {reason}"
    expected = results(BACKENDS["xla"], jnp.dtype(jnp.float32))
    for what, ours, theirs in zip(("output", "gradient of q", "of k", "of v"), found, expected, strict=True):
        error, largest = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
        if not error <= TOLERANCE * largest:  # NaN too
            return f"{name} is wrong on this device: its {what} differs by {error:.3g} of {largest:.3g}"
    return None
