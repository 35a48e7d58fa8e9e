"""The text tower: token ids -> an embedding of each text. Its blocks are those of the image tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_registers.config import Model, Text, lookup
from vit_registers.errors import ConfigError
from vit_registers.models.activations import ACTIVATIONS
from vit_registers.models.attention.api import BACKENDS
from vit_registers.models.blocks import DTYPES, REMAT, Block, dims
from vit_registers.models.edits import NO_EDITS
from vit_registers.models.norm import LayerNorm
from vit_registers.models.stack import ready, run_blocks
from vit_registers.models.text.initializers import TEXT_INITS

POOLS = ("end", "last")


def block_settings(text: Text) -> Model:
    """The settings of the tower's blocks, as those of an image tower.

    Raises ConfigError if the heads do not divide the width.
    """
    model = Model(
        variant=text.variant,
        width=text.width,
        depth=text.depth,
        num_heads=text.num_heads,
        mlp_dim=text.mlp_dim,
        mlp="mlp",
        activation=text.activation,
        norm_eps=text.norm_eps,
        dtype=text.dtype,
        attention=text.attention,
        remat=text.remat,
        use_scan=text.use_scan,
    )
    try:
        dims(model)
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.", "text.")) from None
    return model


def check_text(text: Text) -> None:
    """Raises ConfigError for settings of a text tower that name nothing or exclude each other."""
    lookup(dict.fromkeys(POOLS), text.pool, "text.pool")
    lookup(TEXT_INITS, text.init, "text.init")
    lookup(ACTIVATIONS, text.activation, "text.activation")
    lookup(DTYPES, text.dtype, "text.dtype")
    lookup(REMAT, text.remat, "text.remat")
    lookup(BACKENDS, text.attention, "text.attention")
    block_settings(text)
    if text.end_token is not None and not 0 <= text.end_token < text.vocab_size:
        raise ConfigError(
            f"text.end_token={text.end_token}: must be an id of the vocabulary, 0 to {text.vocab_size - 1}"
        )
    if text.end_token is not None and text.pool != "end":
        raise ConfigError(f"text.end_token={text.end_token} has no effect with text.pool='{text.pool}'")


@functools.lru_cache(maxsize=32)
def causal_mask(num_tokens: int) -> np.ndarray:
    """mask_TxT of booleans: a token may attend to itself and to those before it."""
    return np.tril(np.ones((num_tokens, num_tokens), bool))


class TextTower(nnx.Module):
    """A Transformer over token ids, with the sizes, the mask and the pooling that `text` (config.Text) sets.

    Parameters are float32. Raises ConfigError for settings that exclude each other.
    """

    def __init__(self, text: Text, *, rngs: nnx.Rngs):
        check_text(text)
        self.text = text
        blocks = block_settings(text)
        sizes = dims(blocks)
        init = TEXT_INITS[text.init](sizes.width, sizes.mlp_dim, sizes.depth)
        self.token_embed = nnx.Embed(text.vocab_size, sizes.width, embedding_init=init.token_embed, rngs=rngs)
        self.pos_embed = nnx.Param(
            init.blocks.positions(rngs.params(), (1, text.context, sizes.width), jnp.float32)
        )
        self.blocks = nnx.List([Block(blocks, sizes, init.blocks, rngs=rngs) for _ in range(sizes.depth)])
        self.norm = LayerNorm(sizes.width, epsilon=text.norm_eps, rngs=rngs)
        self.proj = nnx.Linear(
            sizes.width,
            text.embed_dim,
            use_bias=text.has_projection_bias,
            kernel_init=init.proj,
            rngs=rngs,
        )

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """embedding_BxE of texts, float32 and not normalised.

        `tokens_BxL` are integer ids of the vocabulary, of text.context tokens or fewer; an id beyond the
        vocabulary makes the embedding of its text NaN. With text.pool="end", a text without an end token is
        pooled at its first token. Raises ConfigError for other shapes or dtypes.
        """
        self._check_tokens(tokens_BxL)
        dtype, length = DTYPES[self.text.dtype], tokens_BxL.shape[1]
        table = ready(self.token_embed, "token_embed", jnp.float32)
        resid_BxLxD = table(tokens_BxL) + self.pos_embed[...][:, :length]
        taps = run_blocks(
            block_settings(self.text),
            self.blocks,
            resid_BxLxD.astype(dtype),
            mask_TxT=causal_mask(length) if self.text.is_causal else None,
            bias_NxTxT=None,
            drop_key=None,
            drop_group=None,
            edits=NO_EDITS,
        )
        # LayerNorm acts on each token, so that only the pooled one requires it.
        pooled_BxD = self.norm(self.pool(taps["resid"][-1], tokens_BxL))
        return ready(self.proj, "proj", jnp.float32)(pooled_BxD)

    def pool(self, tokens_BxLxD: jax.Array, ids_BxL: jax.Array) -> jax.Array:
        """pooled_BxD: the output at the end token, or at the last one."""
        if self.text.pool == "last":
            return tokens_BxLxD[:, -1]
        is_end = ids_BxL if self.text.end_token is None else ids_BxL == self.text.end_token
        return jnp.take_along_axis(tokens_BxLxD, is_end.argmax(axis=1)[:, None, None], axis=1)[:, 0]

    def _check_tokens(self, tokens_BxL: jax.Array) -> None:
        shape, dtype = jnp.shape(tokens_BxL), getattr(tokens_BxL, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
            raise ConfigError(f"tokens are of dtype {dtype}: must be an array of integer ids")
        if len(shape) != 2 or not 1 <= shape[1] <= self.text.context:
            raise ConfigError(
                f"tokens are an array of shape {shape}: must be [texts, tokens] with 1 to "
                f"{self.text.context} tokens (text.context)"
            )
