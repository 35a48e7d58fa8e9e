"""The tensor names of timm's class Eva, of EVA-02's code, and of the Perception Encoder's code.

Sources: timm 1.0.31 (timm/models/eva.py), baaivision/EVA (EVA-02/asuka, EVA-CLIP), and
facebookresearch/perception_models (core/vision_encoder/pe.py).
"""

import dataclasses
from collections.abc import Collection

from vit_registers.interop.names.dinov2_timm_clip import CLIP, TIMM, AttnPoolNames, TorchNames

_SEPARATE_QKV = tuple(f"attn.{x}_proj.{{}}" for x in "qkv")

_EVA = dataclasses.replace(TIMM, layer_scale=("gamma_1", "gamma_2"), frequencies="rope.freqs")

PE = dataclasses.replace(
    CLIP,
    norm_after_pool=None,  # tokens are normalised before pooling
    attn_pool=AttnPoolNames(
        probe="attn_pool.probe",
        qkv=("attn_pool.attn.in_proj_{}",),
        out="attn_pool.attn.out_proj.{}",
        norm="attn_pool.layernorm.{}",
        fc1="attn_pool.mlp.c_fc.{}",
        fc2="attn_pool.mlp.c_proj.{}",
    ),
)
_EVA02 = dataclasses.replace(
    TIMM,
    mask_token="mask_token",
    mask_token_axes=3,
    qv_bias=("attn.q_bias", "attn.v_bias"),
    layer_scale=("gamma_1", "gamma_2"),
    attention_norm="attn.inner_attn_ln.{}",
    mlp_norm="mlp.ffn_ln.{}",
    w3="mlp.w3.{}",
)

# Tensors that only models of timm's class Eva have, beside names that it shares with other classes.
_OF_EVA = ("attn.q_bias", "attn.q_proj.weight", "mlp.fc1_g.weight", "gamma_1")


def is_eva(names: Collection[str]) -> bool:
    """Whether the tensors of a ViT of timm are of its class Eva. `names` are plain names."""
    is_pe = "norm_pre.weight" in names and ("attn_pool.latent" in names or not _has_norm(names))
    is_pe = is_pe and "blocks.0.ls1.gamma" not in names  # of timm's VisionTransformer
    return is_pe or "rope.freqs" in names or any(f"blocks.0.{part}" in names for part in _OF_EVA)


def _has_norm(names: Collection[str]) -> bool:
    return "norm.weight" in names or "fc_norm.weight" in names


def eva_names(names: Collection[str]) -> TorchNames:
    """The names of a model of timm's class Eva. `names` are plain names of its tensors, or of one block."""
    table = _EVA
    if "blocks.0.attn.q_proj.weight" in names:
        table = dataclasses.replace(table, qkv=_SEPARATE_QKV)
        if "blocks.0.attn.k_proj.bias" not in names:
            table = dataclasses.replace(table, qv_bias=("attn.q_proj.bias", "attn.v_proj.bias"))
    elif "blocks.0.attn.qkv.bias" not in names:
        table = dataclasses.replace(table, qv_bias=("attn.q_bias", "attn.v_bias"))
    if "blocks.0.mlp.fc1_g.weight" in names:
        table = dataclasses.replace(table, w12=("mlp.fc1_g.{}", "mlp.fc1_x.{}"))
    return table


def is_eva02(names: Collection[str]) -> bool:
    """Whether the tensors are of EVA-02's code: SwiGLU, and separate biases of queries and values."""
    block = {name.removeprefix("blocks.0.") for name in names if name.startswith("blocks.0.")}
    is_swiglu = "attn.q_bias" in block and ("mlp.w1.weight" in block or "mlp.w12.weight" in block)
    return is_swiglu or "rope.freqs_cos" in names


def eva02_names(names: Collection[str]) -> TorchNames:
    """The names of a model of EVA-02's code, with or without the tables of its rotation."""
    table = _EVA02
    if "blocks.0.attn.q_proj.weight" in names:
        table = dataclasses.replace(table, qkv=_SEPARATE_QKV)
    is_packed = "blocks.0.mlp.w12.weight" in names
    table = dataclasses.replace(table, w12=("mlp.w12.{}",) if is_packed else ("mlp.w1.{}", "mlp.w2.{}"))
    if "rope.freqs_cos" in names:
        table = dataclasses.replace(table, rotary_tables=("rope.freqs_cos", "rope.freqs_sin"))
    return table
