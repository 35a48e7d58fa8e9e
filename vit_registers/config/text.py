"""The settings of a text tower: size, vocabulary, attention, pooling and how it is computed."""

import dataclasses

from vit_registers.config.occasions import ALWAYS, READ, TRANSFER, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The text tower of models of images and texts. A size that is None is that of `variant`.

    The defaults are those of OpenCLIP's ViT-B/16.
    """

    variant: str = "M"  # Ti | S | M | B | L | H | g, as model.variant: gives the sizes that are None
    width: int | None = None  # of a token
    depth: int | None = None  # number of blocks
    num_heads: int | None = None  # divides the width
    mlp_dim: int | None = None  # of the hidden layer of an MLP
    vocab_size: int = 49_408  # number of token ids
    context: int = 77  # tokens of a text, at most: positions are created for them
    is_causal: bool = True  # a token attends to itself and to earlier ones only (CLIP; not SigLIP)
    # The token that is pooled: end (the first end token: CLIP) | last (the last of the row: SigLIP).
    pool: str = "end"
    # With pool=end: the id of the end token. None: the largest id of each text, as in OpenAI's code.
    end_token: int | None = None
    embed_dim: int = 512  # of the embedding that is compared with that of an image
    has_projection_bias: bool = False  # of the layer that makes the embedding (SigLIP)
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | quick_gelu
    norm_eps: float = 1e-5  # epsilon of LayerNorm
    init: str = setting("open_clip", TRANSFER)  # open_clip | big_vision
    dtype: str = setting("float32", READ, TRANSFER)  # as model.dtype
    attention: str = setting("xla", *ALWAYS)  # xla | cudnn (GPU) | splash (TPU)
    remat: str = setting("none", *ALWAYS)  # as model.remat
    use_scan: bool = setting(False, *ALWAYS)  # as model.use_scan
