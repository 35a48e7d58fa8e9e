"""The layers of a pre-norm transformer block: attention, MLP or SwiGLU, LayerScale, drop path."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers.config import Model, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.activations import ACTIVATIONS, silu_gated
from vit_registers.models.attention.api import BACKENDS, open_to_more, project, rematerialized
from vit_registers.models.attention.mesh import platform
from vit_registers.models.drop_path import add_branch
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.initializers import INITS, Inits
from vit_registers.models.norm import LayerNorm
from vit_registers.models.pixels import patch_channels
from vit_registers.models.positions import position_rule
from vit_registers.models.rotary import Rotary, Rotation
from vit_registers.models.tokens import TokenLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes of a model."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    mlp: str = "mlp"


VARIANTS: dict[str, Dims] = {
    "Ti": Dims(width=192, depth=12, num_heads=3, mlp_dim=768),
    "S": Dims(width=384, depth=12, num_heads=6, mlp_dim=1536),
    "M": Dims(width=512, depth=12, num_heads=8, mlp_dim=2048),
    "B": Dims(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "L": Dims(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "H": Dims(width=1280, depth=32, num_heads=16, mlp_dim=5120),
    "g": Dims(width=1536, depth=40, num_heads=24, mlp_dim=4096, mlp="swiglu"),
}

# Policies of jax.checkpoint: which arrays of a block are stored for the backward pass; others are computed
# again. None: all arrays are stored. With "attention", Attention alone computes its weights again.
REMAT = {"none": None, "attention": None, "block": jax.checkpoint_policies.nothing_saveable}

BLOCK_TAPS = ("q", "k", "v", "middle", "hidden")  # that a Block returns besides its output
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def dims(model: Model) -> Dims:
    """The sizes of `model`: those of its variant, replaced by the settings that are not None.

    A width that is set alone scales mlp_dim. Raises ConfigError if the heads do not divide the width.
    """
    base = lookup(VARIANTS, model.variant, "model.variant")
    width = model.width or base.width
    sizes = Dims(
        width=width,
        depth=base.depth if model.depth is None else model.depth,
        num_heads=model.num_heads or base.num_heads,
        mlp_dim=model.mlp_dim or round(base.mlp_dim * width / base.width),
        mlp=model.mlp or base.mlp,
    )
    if sizes.width % sizes.num_heads:
        raise ConfigError(
            f"model.width={sizes.width} is not a multiple of the {sizes.num_heads} heads: set model.num_heads"
        )
    return sizes


def rotary(model: Model) -> Rotary | None:
    """The rotation of queries and keys in `model`; None without one. Raises ConfigError."""
    rule, sizes = position_rule(model.positions), dims(model)
    return None if rule.rotation is None else rule.rotation(sizes.width // sizes.num_heads)


@functools.lru_cache(maxsize=32)
def _static_rotation(model: Model, layout: TokenLayout) -> Rotation | None:
    rule = rotary(model)
    return None if rule is None else rule.at(layout)


def rotation_at(model: Model, layout: TokenLayout, key: jax.Array | None = None) -> Rotation | None:
    """The rotation of queries and keys for the tokens of `layout`; None for none.

    With a key, that of coordinates drawn for one forward pass, if the settings draw them.
    """
    if key is None or (rule := rotary(model)) is None or not rule.is_jittered:
        return _static_rotation(model, layout)
    return rule.at(layout, jax.random.fold_in(key, dims(model).depth))  # blocks have the numbers below


def uses_key(model: Model) -> bool:
    """Whether a training step of `model` is random: by drop path, or by coordinates that are drawn."""
    rule = rotary(model)
    return bool(model.drop_path) or (rule is not None and rule.is_jittered)


def inits(model: Model, sizes: Dims) -> Inits:
    """The initializers of `model`, whose sizes are `sizes`."""
    recipe = lookup(INITS, model.init, "model.init")
    return recipe(sizes.width, sizes.mlp_dim, patch_channels(model) * model.patch_size**2)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused qkv projection, kernel DxQxNxK with Q = q, k, v."""

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        heads = (sizes.num_heads, sizes.width // sizes.num_heads)
        layer = functools.partial(nnx.LinearGeneral, dtype=DTYPES[model.dtype], rngs=rngs)
        self.qkv = layer(sizes.width, (3, *heads), use_bias=model.use_qkv_bias, kernel_init=init.attention)
        self.norm = _inner_norm(model, sizes.width, rngs) if model.use_attention_norm else None
        self.out = layer(heads, sizes.width, axis=(-2, -1), kernel_init=init.attention_out)
        self.backend, self.is_rematerialized = model.attention, model.remat == "attention"
        rule = position_rule(model.positions).rotation
        rotation = None if rule is None else rule(heads[1])
        if rotation is not None and rotation.is_learned:
            self.frequencies = nnx.Param(rotation.init(rngs.params(), heads[0]))
        else:
            self.frequencies = None

    def __call__(
        self,
        x_BxTxD: jax.Array,
        mask_TxT: np.ndarray | None,
        bias_NxTxT: np.ndarray | None,
        edit: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] = lambda k, v: (k, v),
        rotation: Rotation | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        """The attention output out_BxTxD and (q, k, v), each BxTxNxK, as attention reads them.

        q and k are after `rotation`, and keys and values after `edit` of these.
        """
        q, k, v = project(self.qkv, x_BxTxD, self.backend)
        if rotation is not None:
            frequency_2xNxA = None if self.frequencies is None else self.frequencies[...]
            q, k = (rotation.rotate(x, frequency_2xNxA) for x in (q, k))
        k, v = edit(k, v)
        mask_TxT, bias_NxTxT = open_to_more(mask_TxT, bias_NxTxT, k.shape[1])
        attend = functools.partial(
            lookup(BACKENDS, self.backend, "model.attention"), mask_TxT=mask_TxT, bias_NxTxT=bias_NxTxT
        )
        out_BxTxNxK = (rematerialized(attend) if self.is_rematerialized else attend)(q, k, v)
        if self.norm is not None:  # over all heads
            flat_BxTxD = out_BxTxNxK.reshape(*out_BxTxNxK.shape[:2], -1)
            out_BxTxNxK = self.norm(flat_BxTxD).astype(out_BxTxNxK.dtype).reshape(out_BxTxNxK.shape)
        return self.out(out_BxTxNxK), (q, k, v)


def _inner_norm(model: Model, width: int, rngs: nnx.Rngs) -> LayerNorm:
    """A LayerNorm inside a branch (arXiv:2110.09456)."""
    return LayerNorm(width, epsilon=model.norm_eps, rngs=rngs)


Edit = Callable[[jax.Array], jax.Array]


def _project(
    layer: nnx.Module,
    norm: LayerNorm | None,
    inner: jax.Array,
    activate: Edit,
    edit: Edit,
    remat: str,
) -> tuple[jax.Array, jax.Array]:
    """(layer(norm(hidden)), hidden) for hidden = edit(activate(inner)); without a norm, layer(hidden).

    On a GPU the backward pass computes `hidden` again: it is a quarter of what a block would store, and
    costs one more write of it, as the gradient of the activation reads `inner` in any case. Elsewhere XLA
    fuses the activation into products as it sees fit.
    """

    def apply(layer: nnx.Module, norm: LayerNorm | None, inner: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = edit(activate(inner))
        return layer(hidden if norm is None else norm(hidden)), hidden

    if platform() == "gpu" and remat != "block":  # which computes all of the block again
        apply = nnx.remat(apply)
    return apply(layer, norm, inner)


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))); with model.use_mlp_norm, fc2(norm(activation(fc1(x))))."""

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        layer = functools.partial(nnx.Linear, dtype=DTYPES[model.dtype], rngs=rngs)
        first, last = (init.mlp, init.mlp_bias), (init.mlp_out, init.mlp_out_bias)
        self.fc1 = layer(sizes.width, sizes.mlp_dim, kernel_init=first[0], bias_init=first[1])
        self.fc2 = layer(sizes.mlp_dim, sizes.width, kernel_init=last[0], bias_init=last[1])
        self.norm = _inner_norm(model, sizes.mlp_dim, rngs) if model.use_mlp_norm else None
        self.activation, self.remat = model.activation, model.remat

    def __call__(self, x: jax.Array, edit: Edit = lambda hidden: hidden) -> tuple[jax.Array, jax.Array]:
        """(out_BxTxD, hidden_BxTxF: the activations after `edit`)."""
        activate = lookup(ACTIVATIONS, self.activation, "model.activation")
        return _project(self.fc2, self.norm, self.fc1(x), activate, edit, self.remat)


class SwiGlu(nnx.Module):
    """w3(silu(gate) * value); the first half of w12(x) is the gate, as in DINOv2.

    With model.use_mlp_norm, a LayerNorm precedes w3, as in EVA-02.
    """

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        layer = functools.partial(nnx.Linear, dtype=DTYPES[model.dtype], rngs=rngs)
        first, last = (init.mlp, init.mlp_bias), (init.mlp_out, init.mlp_out_bias)
        self.w12 = layer(sizes.width, 2 * sizes.mlp_dim, kernel_init=first[0], bias_init=first[1])
        self.w3 = layer(sizes.mlp_dim, sizes.width, kernel_init=last[0], bias_init=last[1])
        self.norm = _inner_norm(model, sizes.mlp_dim, rngs) if model.use_mlp_norm else None
        self.remat = model.remat

    def __call__(self, x: jax.Array, edit: Edit = lambda hidden: hidden) -> tuple[jax.Array, jax.Array]:
        """(out_BxTxD, hidden_BxTxF: the gated values after `edit`)."""

        def activate(inner: jax.Array) -> jax.Array:
            gate, value = jnp.split(inner, 2, axis=-1)
            return silu_gated(gate, value)

        return _project(self.w3, self.norm, self.w12(x), activate, edit, self.remat)


MLPS: dict[str, type[nnx.Module]] = {"mlp": Mlp, "swiglu": SwiGlu}


class LayerScale(nnx.Module):
    """x * gamma, with gamma learned per channel (arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float, dtype: jnp.dtype):
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))
        self.dtype = dtype

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        return x_BxTxD * self.gamma[...].astype(self.dtype)[None, None]


class Block(nnx.Module):
    """Pre-norm block: x += ls1(attn(norm1(x))); x += ls2(mlp(norm2(x))), each branch under drop path."""

    def __init__(self, model: Model, sizes: Dims, init: Inits, *, rngs: nnx.Rngs):
        dtype = DTYPES[model.dtype]
        self.norm1 = LayerNorm(sizes.width, epsilon=model.norm_eps, rngs=rngs)
        self.attn = Attention(model, sizes, init, rngs=rngs)
        self.norm2 = LayerNorm(sizes.width, epsilon=model.norm_eps, rngs=rngs)
        self.mlp = lookup(MLPS, sizes.mlp, "model.mlp")(model, sizes, init, rngs=rngs)
        initial = model.layer_scale_init
        self.ls1 = None if initial is None else LayerScale(sizes.width, initial, dtype)
        self.ls2 = None if initial is None else LayerScale(sizes.width, initial, dtype)

    def __call__(
        self,
        resid_BxTxD: jax.Array,
        mask_TxT: np.ndarray | None,
        bias_NxTxT: np.ndarray | None,
        drop_key: jax.Array | None,
        *,
        drop_rate: float | jax.Array = 0.0,
        drop_group: int | None = None,
        index: int = 0,
        edits: Edits = NO_EDITS,
        rotation: Rotation | None = None,
        no_skip_1xTx1: np.ndarray | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(the residual stream after the block, the inner values BLOCK_TAPS by name).

        `edits` receive `index`, the position of the block in the model. The blocks of a model differ only in
        their parameters; everything else that differs, such as `drop_rate`, is an argument. With `drop_group`
        and a key, the taps other than "middle" are those of the kept examples; see drop_path.add_branch.
        Attention replaces the tokens in `no_skip_1xTx1` and is added to the others; drop path is then off.
        """
        key1, key2 = (None, None) if drop_key is None else jax.random.split(drop_key)

        def attend(x_BxTxD: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            edit = functools.partial(edits.keys_values, index)
            out_BxTxD, qkv = self.attn(self.norm1(x_BxTxD), mask_TxT, bias_NxTxT, edit, rotation)
            return self._scaled(self.ls1, out_BxTxD), qkv

        def transform(x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
            out_BxTxD, hidden = self.mlp(self.norm2(x_BxTxD), functools.partial(edits.hidden, index))
            return self._scaled(self.ls2, out_BxTxD), hidden

        drop = functools.partial(add_branch, rate=drop_rate, group=drop_group)
        if no_skip_1xTx1 is None:
            middle_BxTxD, (q, k, v) = drop(resid_BxTxD, attend, key=key1)
        else:
            out_BxTxD, (q, k, v) = attend(resid_BxTxD)
            middle_BxTxD = jnp.where(no_skip_1xTx1, jnp.zeros_like(resid_BxTxD), resid_BxTxD) + out_BxTxD
        resid_BxTxD, hidden_BxTxF = drop(middle_BxTxD, transform, key=key2)
        return resid_BxTxD, dict(zip(BLOCK_TAPS, (q, k, v, middle_BxTxD, hidden_BxTxF), strict=True))

    @staticmethod
    def _scaled(scale: LayerScale | None, x_BxTxD: jax.Array) -> jax.Array:
        return x_BxTxD if scale is None else scale(x_BxTxD)
