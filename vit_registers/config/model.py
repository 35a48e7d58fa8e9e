"""The settings of a model: size, tokens, positions, mask, blocks, pooling and how it is computed."""

import dataclasses

from vit_registers.config.occasions import ALWAYS, READ, TRANSFER, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The Vision Transformer. A size that is None is that of `variant`."""

    variant: str = setting("S", TRANSFER)  # Ti | S | M | B | L | H | g: gives the sizes that are None
    width: int | None = None  # of a token
    depth: int | None = None  # number of blocks
    num_heads: int | None = None  # divides the width
    mlp_dim: int | None = None  # of the hidden layer of an MLP
    mlp: str | None = None  # mlp | swiglu
    patch_size: int = 16  # in pixels; divides the sides of image_size
    # (height, width) in pixels; positions are created for its grid of patches.
    image_size: tuple[int, int] = setting((224, 224), READ, TRANSFER)
    channels: int = 3  # of the images: 1 (grey) | 3 (RGB)
    # What a pixel is: brightness | byte (each of the 256 values has a vector of its own; for text, which is
    # an image of one row, with patch_size=1 and channels=1).
    pixels: str = "brightness"
    num_classes: int = setting(1000, TRANSFER)  # 0: no head, and logits are None

    use_cls: bool = True  # the cls token
    num_registers: int = setting(0, TRANSFER)  # register tokens
    registers: str = setting("learned", TRANSFER)  # learned | zeros (fixed)
    # k: the summary grids are the patch grid divided by k, rounded down, repeatedly. None: no summary tokens.
    summary_factor: int | None = setting(None, TRANSFER)
    summaries: str = setting("learned", TRANSFER)  # learned | zeros (fixed)
    # sincos2d | sincos1d (of sequences) | learned | alibi2d | none, and a rotation of queries and keys, alone
    # or beside one of these: rope2d(base=100), learned + rope2d (models/rotary.py).
    positions: str = "learned"
    has_cls_position: bool = True  # with positions=learned: the table has a row for cls
    # Resampling of positions at another image size: bicubic_aa | bicubic | bicubic_offset | bilinear |
    # linear | bilinear_crop | linear_crop (models/resampling.py) | none (a fixed table is computed for that
    # size).
    position_resampling: str = setting("bicubic_aa", TRANSFER)
    # Positions of registers and summaries: none | learned | sincos2d (of summaries only, by grid).
    extra_positions: str = setting("none", TRANSFER)
    # none | fractal | fractal_released | fractal_local | shifted(offset=1) | one_way | window(radius=2) |
    # cls_through_registers | causal | fractal_causal | file(path='m.npy') (models/masks.py: MASKS).
    mask: str = setting("none", TRANSFER)
    # The number of last blocks with cls, which reads the other tokens, and they do not read it. None: cls is
    # in all blocks, and they do (models/cls_role.py).
    cls_blocks: int | None = setting(None, TRANSFER)
    # False: in every block, attention replaces cls instead of being added to it.
    has_cls_skip: bool = setting(True, TRANSFER)
    use_mask_token: bool = setting(False, TRANSFER)  # a learned vector replaces masked patches

    use_norm_pre: bool = False  # LayerNorm over all tokens before the first block (CLIP)
    use_final_norm: bool = True  # LayerNorm after the last block; see use_norm_after_pool
    # LayerNorm of what attention returns, before its output layer (EVA-02 CLIP).
    use_attention_norm: bool = False
    use_mlp_norm: bool = False  # LayerNorm of the hidden values of an MLP, before its last layer (EVA-02)
    layer_scale_init: float | None = setting(None, TRANSFER)  # None: no LayerScale
    drop_path: float = setting(0.0, TRANSFER)  # probability that a block is left out in training, at most
    drop_path_schedule: str = setting("linear", TRANSFER)  # linear | constant
    # None: a branch is left out for each image on its own. n: it is computed for a fixed number of each n
    # consecutive images, as in DINOv2's code, which saves the rest; must divide the batch.
    drop_path_group: int | None = setting(None, TRANSFER)
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | quick_gelu; SwiGLU gates with SiLU
    norm_eps: float = 1e-6  # epsilon of LayerNorm
    use_qkv_bias: bool = True  # of queries, keys and values
    use_patch_bias: bool = True  # of the layer that embeds patches
    # cls | gap (mean of patches) | map | cls_gap (both joined) | cls_registers (all of them joined) |
    # summary (the first summary token, of the coarsest level)
    pooling: str = setting("cls", TRANSFER)
    # With pooling=map: patches | all (cls and registers too), the tokens that the probe attends to.
    pool_tokens: str = setting("patches", TRANSFER)
    pool_num_heads: int | None = setting(None, TRANSFER)  # with pooling=map; None: num_heads
    pool_mlp_dim: int | None = setting(None, TRANSFER)  # with pooling=map; None: mlp_dim
    # The final norm is applied after pooling (CLIP, timm's fc_norm).
    use_norm_after_pool: bool = setting(False, TRANSFER)
    use_pre_logits: bool = setting(False, TRANSFER)  # a Dense(width) layer and tanh between pooling and head
    use_head_bias: bool = setting(True, TRANSFER)  # of the classifier
    init: str = setting("big_vision", TRANSFER)  # big_vision | deit3 | dinov2 | open_clip
    # Of activations: float32 | bfloat16. Parameters are float32.
    dtype: str = setting("float32", READ, TRANSFER)
    # xla | cudnn (GPU) | splash (TPU) | auto (models/attention_choice.py).
    attention: str = setting("xla", *ALWAYS)
    # What is recomputed in the backward pass: none | attention (its weights) | block.
    remat: str = setting("none", *ALWAYS)
    # Compiles the blocks as one loop, which is faster to compile. Use it with remat=block.
    use_scan: bool = setting(False, *ALWAYS)
