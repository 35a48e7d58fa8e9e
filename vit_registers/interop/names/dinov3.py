"""The tensor names of DINOv3: of its own code and of transformers. Those of timm are in names/eva.py.

Sources: facebookresearch/dinov3 (models/vision_transformer.py, hub/backbones.py, layers), and the state_dict
of transformers 5.24.
"""

import dataclasses
from collections.abc import Collection

from vit_registers.interop.names.dinov2_timm_clip import TorchNames

_BIAS_MASK = "attn.qkv.bias_mask"

DINOV3 = TorchNames(
    registers="storage_tokens",
    mask_token="mask_token",
    periods="rope_embed.periods",
    w12=("mlp.w1.{}", "mlp.w2.{}"),
    w3="mlp.w3.{}",
    head=None,
)
HF_DINOV3 = TorchNames(  # on disk
    patch="embeddings.patch_embeddings.{}",
    cls="embeddings.cls_token",
    positions="embeddings.position_embeddings",  # which it does not have
    registers="embeddings.register_tokens",
    mask_token="embeddings.mask_token",
    mask_token_axes=3,
    block="layer.{}.",
    qkv=tuple(f"attention.{x}_proj.{{}}" for x in "qkv"),
    out="attention.o_proj.{}",
    layer_scale=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    fc1="mlp.up_proj.{}",
    fc2="mlp.down_proj.{}",
    w12=("mlp.gate_proj.{}", "mlp.up_proj.{}"),
    w3="mlp.down_proj.{}",
    head=None,
)


def dinov3_names(names: Collection[str]) -> TorchNames:
    """The names of DINOv3's own code. `names` are plain names of its tensors, or of the first block."""
    has_mask = f"blocks.0.{_BIAS_MASK}" in names
    return dataclasses.replace(DINOV3, bias_mask=_BIAS_MASK) if has_mask else DINOV3


def hf_dinov3_names(names: Collection[str]) -> TorchNames:
    """The names of transformers' DINOv3, on disk or in memory, with or without a bias of keys."""
    prefix = "model." if any(name.startswith("model.layer.") for name in names) else ""
    block = f"{prefix}layer.0."
    table = dataclasses.replace(HF_DINOV3, block=f"{prefix}layer.{{}}.")
    if f"{block}attention.k_proj.bias" not in names:
        table = dataclasses.replace(table, qv_bias=("attention.q_proj.bias", "attention.v_proj.bias"))
    if f"{block}mlp.gate_proj.weight" in names:  # their MLP without a gate has a layer of the same name
        table = dataclasses.replace(table, fc1="mlp.fc1.{}", fc2="mlp.fc2.{}")
    return table
