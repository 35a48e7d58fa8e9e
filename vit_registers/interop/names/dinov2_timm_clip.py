"""The tensor names of every family. recognize.py and unwrap.py have those that tell families apart.

A name contains {} instead of "weight" or "bias". The name of a block contains {} instead of its
number. None means that the family has no such tensor. Sources: the repositories of the families, and the
state_dict of transformers 5.23.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttnPoolNames:
    """The tensor names of attention pooling. The defaults are timm's."""

    probe: str = "attn_pool.latent"
    qkv: tuple[str, ...] = ("attn_pool.q.{}", "attn_pool.kv.{}")  # or one joint tensor
    out: str = "attn_pool.proj.{}"
    norm: str = "attn_pool.norm.{}"
    fc1: str = "attn_pool.mlp.fc1.{}"
    fc2: str = "attn_pool.mlp.fc2.{}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchNames:
    """The tensor names of one family. The defaults are timm's VisionTransformer."""

    patch: str = "patch_embed.proj.{}"
    cls: str = "cls_token"
    cls_axes: int = 3
    positions: str = "pos_embed"
    position_axes: int = 3
    registers: str | None = None
    mask_token: str | None = None
    mask_token_axes: int = 2
    norm_pre: str | None = None
    block: str = "blocks.{}."
    norm1: str = "norm1.{}"
    norm2: str = "norm2.{}"
    qkv: tuple[str, ...] = ("attn.qkv.{}",)  # one fused tensor, or three
    qv_bias: tuple[str, str] | None = None  # full names of biases of queries and values; keys have none
    out: str = "attn.proj.{}"
    attention_norm: str | None = None  # inside the branch, before its last layer
    mlp_norm: str | None = None  # the same
    layer_scale: tuple[str, str] | None = ("ls1.gamma", "ls2.gamma")
    fc1: str = "mlp.fc1.{}"
    fc2: str = "mlp.fc2.{}"
    w12: tuple[str, ...] = ("mlp.fc1.{}",)  # one fused tensor with the gate first, or gate and value
    w3: str = "mlp.fc2.{}"
    norm: str = "norm.{}"
    norm_after_pool: str | None = None  # the final norm, if it follows the pooling
    pre_logits: str | None = None
    head: tuple[str, ...] | None = ("head.{}",)  # one head, or two whose logits are averaged
    # A head without bias; [outputs, width] if the name has {}, else [width, outputs].
    projection: str | None = None
    attn_pool: AttnPoolNames | None = None
    mask: str | None = None  # a fixed tensor: the attention mask and bias
    frequencies: str | None = None  # of learned rotations, [2, depth, heads, angles]
    rotary_tables: tuple[str, str] | None = None  # fixed tensors: cosines and sines of a rotation
    periods: str | None = None  # a fixed tensor: those of a rotation
    bias_mask: str | None = None  # of a block: what the bias of queries, keys and values is multiplied by


@dataclasses.dataclass(frozen=True, kw_only=True)
class MupVitNames(TorchNames):
    """The tensor names of one variant of the fractal paper's code."""

    registers: str = "reg"
    pre_logits: str = "heads.pre_logits.{}"
    head: tuple[str, ...] = ("heads.head.{}",)


TIMM = TorchNames(
    registers="reg_token",
    norm_pre="norm_pre.{}",
    attention_norm="attn.norm.{}",
    mlp_norm="mlp.norm.{}",
    norm_after_pool="fc_norm.{}",
    attn_pool=AttnPoolNames(),
)
DINOV2 = TorchNames(
    registers="register_tokens", mask_token="mask_token", w12=("mlp.w12.{}",), w3="mlp.w3.{}", head=None
)
DEIT = TorchNames(registers="reg_tokens", layer_scale=("gamma_1", "gamma_2"))
# DeiT of 2020: its distillation token is a register with its own position.
DEIT_1 = dataclasses.replace(DEIT, registers="dist_token", head=("head.{}", "head_dist.{}"))
DEIT_1_ONE_HEAD = dataclasses.replace(DEIT_1, head=DEIT.head)
DINO = TorchNames(mask_token="masked_embed", layer_scale=("gamma_1", "gamma_2"), head=None)
CLIP = TorchNames(
    patch="conv1.{}",
    cls="class_embedding",
    cls_axes=1,
    positions="positional_embedding",
    position_axes=2,
    norm_pre="ln_pre.{}",
    block="transformer.resblocks.{}.",
    norm1="ln_1.{}",
    norm2="ln_2.{}",
    qkv=("attn.in_proj_{}",),
    out="attn.out_proj.{}",
    layer_scale=("ls_1.gamma", "ls_2.gamma"),
    fc1="mlp.c_fc.{}",
    fc2="mlp.c_proj.{}",
    norm="ln_post.{}",
    norm_after_pool="ln_post.{}",
    head=None,
    projection="proj",
)
MUP_VIT = MupVitNames(  # the released branch of the fractal code
    mask="mask",
    patch="conv_proj.{}",
    positions="pos_embedding",
    block="encoder.layers.{}.",
    norm1="ln_1.{}",
    norm2="ln_2.{}",
    qkv=("self_attention.in_proj_{}",),
    out="self_attention.out_proj.{}",
    layer_scale=None,
    fc1="mlp.0.{}",
    fc2="mlp.3.{}",
    norm="encoder.ln.{}",
)
MUP_VIT_FLEX = dataclasses.replace(  # its flex-attention variant, which does not store its mask
    MUP_VIT, out="self_attention.out_proj_{}", mask=None
)
MUP_VIT_OLDER = dataclasses.replace(MUP_VIT, block="encoder.layers.encoder_layer_{}.")  # before masks
MUP_VIT_MAIN = dataclasses.replace(  # its main branch
    MUP_VIT,
    mask="encoder.attn_mask",
    patch="patchifier.{}",
    block="encoder.layers.encoder_layer_{}.",
    qkv=("attention.attention.in_proj_{}",),
    out="attention.attention.out_proj.{}",
)

# --- transformers: names on disk, which every version reads and writes, and names in memory since 5 ---

HF_DINOV2 = TorchNames(
    patch="embeddings.patch_embeddings.projection.{}",
    cls="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    registers="embeddings.register_tokens",
    mask_token="embeddings.mask_token",
    block="encoder.layer.{}.",
    qkv=tuple(f"attention.attention.{x}.{{}}" for x in ("query", "key", "value")),
    out="attention.output.dense.{}",
    layer_scale=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    w12=("mlp.weights_in.{}",),
    w3="mlp.weights_out.{}",
    norm="layernorm.{}",
    head=("classifier.{}",),
)
HF_DINOV2_MEMORY = dataclasses.replace(
    HF_DINOV2,
    qkv=tuple(f"attention.{x}_proj.{{}}" for x in "qkv"),
    out="attention.o_proj.{}",
    w12=("mlp.gate_proj.{}", "mlp.up_proj.{}"),
    w3="mlp.down_proj.{}",
)
HF_VIT = dataclasses.replace(
    HF_DINOV2,
    registers=None,
    mask_token_axes=3,
    norm1="layernorm_before.{}",
    norm2="layernorm_after.{}",
    layer_scale=None,
    fc1="intermediate.dense.{}",
    fc2="output.dense.{}",
)
HF_VIT_MEMORY = dataclasses.replace(
    HF_VIT,
    block="layers.{}.",
    qkv=HF_DINOV2_MEMORY.qkv,
    out=HF_DINOV2_MEMORY.out,
    fc1="mlp.fc1.{}",
    fc2="mlp.fc2.{}",
)
HF_DEIT = dataclasses.replace(HF_VIT, registers="embeddings.distillation_token")
HF_DEIT_MEMORY = dataclasses.replace(HF_VIT_MEMORY, registers="embeddings.distillation_token")
HF_DEIT_HEADS = ("cls_classifier.{}", "distillation_classifier.{}")
HF_CLIP = TorchNames(
    patch="embeddings.patch_embedding.{}",
    cls="embeddings.class_embedding",
    cls_axes=1,
    positions="embeddings.position_embedding.weight",
    position_axes=2,
    norm_pre="pre_layrnorm.{}",  # their spelling
    block="encoder.layers.{}.",
    norm1="layer_norm1.{}",
    norm2="layer_norm2.{}",
    qkv=tuple(f"self_attn.{x}_proj.{{}}" for x in "qkv"),
    out="self_attn.out_proj.{}",
    layer_scale=None,
    norm="post_layernorm.{}",
    norm_after_pool="post_layernorm.{}",
    head=None,
    projection="visual_projection.{}",
)
HF_SIGLIP = dataclasses.replace(
    HF_CLIP,
    cls="embeddings.class_embedding",  # which it does not have
    norm_pre=None,
    norm_after_pool=None,
    projection=None,
    attn_pool=AttnPoolNames(
        probe="head.probe",
        qkv=("head.attention.in_proj_{}",),
        out="head.attention.out_proj.{}",
        norm="head.layernorm.{}",
        fc1="head.mlp.fc1.{}",
        fc2="head.mlp.fc2.{}",
    ),
)

# --- big_vision, whose axes have the order of this project -----------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigVisionNames:
    """The tensor names that differ between big_vision's layouts."""

    mask: None = None  # no layout stores a mask
    encoder: str = "Transformer"  # holds the blocks and the norm after them
    positions: str = "pos_embedding"
    attention: str = "MultiHeadDotProductAttention_0"
    norm2: str = "LayerNorm_1"
    mlp: str = "MlpBlock_0"
    is_scanned: bool = False


BIG_VISION = BigVisionNames()
BIG_VISION_SCANNED = BigVisionNames(is_scanned=True)
BIG_VISION_ORIGINAL = BigVisionNames(
    positions="Transformer/posembed_input/pos_embedding",
    attention="MultiHeadDotProductAttention_1",
    norm2="LayerNorm_2",
    mlp="MlpBlock_3",
)

TensorNames = TorchNames | BigVisionNames

WRITTEN_NAMES: dict[str, TensorNames] = {  # by family; other variants are read only
    "dinov2": DINOV2,
    "deit": DEIT,
    "dino": DINO,
    "clip": CLIP,
    "open_clip": CLIP,
    "timm": TIMM,
    "big_vision": BIG_VISION,
    "mup_vit": MUP_VIT,
    "transformers/dinov2": HF_DINOV2,
    "transformers/vit": HF_VIT,
    "transformers/deit": HF_DEIT,
    "transformers/clip": HF_CLIP,
    "transformers/siglip": HF_SIGLIP,
}
IN_MEMORY = {"dinov2": HF_DINOV2_MEMORY, "vit": HF_VIT_MEMORY, "deit": HF_DEIT_MEMORY}
IN_MEMORY |= {"clip": HF_CLIP, "siglip": HF_SIGLIP}  # the same
