"""The config.json files of transformers and timm, which describe exported models."""

from collections.abc import Sequence
from typing import Any

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.export import dinov3, eva
from vit_registers.interop.export.preprocessing_files import Preprocessing, timm_json
from vit_registers.models.blocks import dims, rotary

HIDDEN_ACTS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}


def transformers_config(
    model: Model, kind: str, class_names: Sequence[str] | None, own: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json of a model for transformers. Raises CheckpointError if it has no such sizes.

    `kind` is clip, siglip, deit, vit or dinov2; a kind with values of its `own` has these and the sizes.
    """
    sizes = dims(model)
    height, width = model.image_size
    if height != width:
        raise CheckpointError(f"transformers makes models for square images only, not {height} x {width} px")
    values: dict[str, Any] = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "hidden_act": HIDDEN_ACTS[model.activation],
        "layer_norm_eps": model.norm_eps,
        "image_size": height,
        "patch_size": model.patch_size,
        "num_channels": model.channels,
    }
    if own is not None:
        return values | own
    has_head = bool(model.num_classes)
    if kind == "clip":
        name = "CLIPVisionModelWithProjection" if has_head else "CLIPVisionModel"
        values |= {"model_type": "clip_vision_model", "intermediate_size": sizes.mlp_dim}
        return values | {"architectures": [name], "projection_dim": model.num_classes or 512}
    if kind == "siglip":
        values |= {"model_type": "siglip_vision_model", "architectures": ["SiglipVisionModel"]}
        return values | {"intermediate_size": sizes.mlp_dim, "vision_use_head": True}
    values |= {"qkv_bias": model.use_qkv_bias}
    if has_head:
        names = class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
        labels = {str(i): name for i, name in enumerate(names)}
        values |= {"id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    suffix = "ForImageClassification" if has_head else "Model"
    if kind in ("vit", "deit"):
        name = {"vit": "ViT", "deit": "DeiT"}[kind] + suffix
        name += "WithTeacher" if model.pooling == "cls_registers" and has_head else ""
        return values | {"model_type": kind, "architectures": [name], "intermediate_size": sizes.mlp_dim}
    has_registers = model.num_registers > 0
    name = ("Dinov2WithRegisters" if has_registers else "Dinov2") + suffix
    values |= {
        "model_type": "dinov2_with_registers" if has_registers else "dinov2",
        "architectures": [name],
        "use_swiglu_ffn": sizes.mlp == "swiglu",
        "mlp_ratio": _mlp_ratio(sizes.width, sizes.mlp_dim, sizes.mlp == "swiglu"),
        "layerscale_value": 1.0,
    }
    return values | ({"num_register_tokens": model.num_registers} if has_registers else {})


def _mlp_ratio(width: int, mlp_dim: int, is_swiglu: bool) -> int:
    """The ratio from which transformers computes mlp_dim. Raises CheckpointError if there is none."""
    computed = {r: (int(width * r * 2 / 3) + 7) // 8 * 8 if is_swiglu else width * r for r in range(1, 65)}
    for ratio, value in computed.items():
        if value == mlp_dim:
            return ratio
    known = sorted(computed.values(), key=lambda value: abs(value - mlp_dim))[:3]
    raise CheckpointError(
        f"transformers' DINOv2 of width {width} has no MLPs {mlp_dim} wide, since its mlp_ratio is an "
        f"integer: nearest are {', '.join(map(str, sorted(known)))}"
    )


def timm_arguments(model: Model) -> dict[str, Any]:
    """The arguments of timm.models.vision_transformer.VisionTransformer for the exported tensors.

    Export.notes has the arguments that are not text.
    """
    sizes = dims(model)
    activation = "silu" if sizes.mlp == "swiglu" else model.activation
    hidden = sizes.mlp_dim * (2 if sizes.mlp == "swiglu" else 1)
    ratio = hidden / sizes.width
    if int(sizes.width * ratio) != hidden:  # as timm computes it
        ratio = (hidden + 0.5) / sizes.width
    values = {
        "img_size": list(model.image_size),
        "patch_size": model.patch_size,
        "in_chans": model.channels,
        "num_classes": model.num_classes,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[model.pooling],
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_ratio": ratio,
        "qkv_bias": model.use_qkv_bias,
        "init_values": model.layer_scale_init,
        "class_token": model.use_cls,
        "no_embed_class": not (model.use_cls and model.has_cls_position) and model.extra_positions == "none",
        "reg_tokens": model.num_registers,
        "pre_norm": model.use_norm_pre,
        "fc_norm": model.use_norm_after_pool if model.pooling == "gap" else None,
        "final_norm": None if model.use_final_norm else False,
        "scale_attn_norm": model.use_attention_norm or None,
        "scale_mlp_norm": model.use_mlp_norm or None,
        "pool_include_prefix": model.pool_tokens == "all",
        "act_layer": None if activation == "gelu" else activation,
    }
    return {key: value for key, value in values.items() if value is not None}


def _timm_model(model: Model) -> tuple[str, dict[str, Any]]:
    """(an architecture of timm with the layers that arguments cannot express, all arguments)."""
    if eva.counts_patches(model):
        return eva.architecture_of(model), eva.timm_rope_arguments(model)
    if rotary(model) is not None:
        plus = "_plus" if dims(model).mlp == "swiglu" else ""
        return f"vit_small{plus}_patch16_dinov3", dinov3.timm_dinov3_arguments(model)
    architecture = "vit_base_patch16_224"
    if dims(model).mlp == "swiglu":
        architecture = "vit_giant_patch14_dinov2"
    elif model.use_norm_pre:
        architecture = "vit_base_patch16_clip_224"  # whose norms have an eps of 1e-5
    return architecture, timm_arguments(model)


def timm_call(model: Model) -> str:
    """The Python call that makes the model in timm, without the arguments that Export.notes has."""
    architecture, arguments = _timm_model(model)
    if rotary(model) is None:
        return f"timm.models.vision_transformer.VisionTransformer(**{arguments})"
    return f"timm.create_model({architecture!r}, **{arguments})"  # of its class Eva


def timm_config(model: Model, p: Preprocessing, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The config.json of a model for timm, for timm.create_model("local-dir:FOLDER").

    It names an architecture of timm that has the layers which arguments cannot express, and all arguments.
    """
    architecture, arguments = _timm_model(model)
    values = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": dims(model).width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": timm_json(p, model.num_classes),
    }
    return values | ({"label_names": list(class_names)} if class_names and model.num_classes else {})
