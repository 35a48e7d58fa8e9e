"""The configs of whole models of images and texts, for transformers and OpenCLIP."""

from collections.abc import Mapping
from typing import Any

from vit_registers.config import Model, Text
from vit_registers.errors import CheckpointError
from vit_registers.interop.export.json_configs import HIDDEN_ACTS
from vit_registers.interop.export.preprocessing_files import Preprocessing, timm_json
from vit_registers.models.blocks import Dims, dims
from vit_registers.models.text.tower import block_settings

_LEGACY_END = 2  # an end token with which transformers pools the largest id

# timm's image towers of SigLIP by (width, depth, heads, mlp_dim, patch size).
_TIMM_SIGLIP = {
    (768, 12, 12, 3072, 16): "vit_base_patch16_siglip",
    (1024, 24, 16, 4096, 16): "vit_large_patch16_siglip",
    (1152, 27, 16, 4304, 14): "vit_so400m_patch14_siglip",
}


def whole_transformers_config(vision: Mapping[str, Any], text: Text, kind: str) -> dict[str, Any]:
    """The config.json of CLIPModel or SiglipModel (`kind`: clip or siglip) with the image tower `vision`."""
    sizes = dims(block_settings(text))
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    values: dict[str, Any] = {
        "model_type": f"{kind}_text_model",
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.mlp_dim,
        "hidden_act": HIDDEN_ACTS[text.activation],
        "layer_norm_eps": text.norm_eps,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if kind == "clip":
        if text.end_token == _LEGACY_END:  # of MetaCLIP 2
            raise CheckpointError(
                f"transformers' CLIP pools the largest id if the end token is {_LEGACY_END}, as it is here: "
                "write another format, such as open_clip"
            )
        values["eos_token_id"] = _LEGACY_END if text.end_token is None else text.end_token
        values["projection_dim"] = text.embed_dim
    else:
        values |= {"eos_token_id": None, "projection_size": text.embed_dim}
    whole = {
        "architectures": [f"{name}Model"],
        "model_type": kind,
        "text_config": values,
        "vision_config": {key: value for key, value in vision.items() if key != "architectures"},
    }
    return whole | ({"projection_dim": text.embed_dim} if kind == "clip" else {})


def is_by_timm(model: Model) -> bool:
    """Whether OpenCLIP takes such an image tower from timm: its own pool cls, and have no registers."""
    return not model.use_cls or model.num_registers > 0 or model.pooling == "map"


def open_clip_config(model: Model, text: Text, p: Preprocessing) -> dict[str, Any]:
    """The open_clip_config.json of a whole model. Raises CheckpointError if OpenCLIP has no such model."""
    is_siglip, is_timm = model.pooling == "map", is_by_timm(model)
    is_quick = [one.activation == "quick_gelu" for one in (model, text)]
    if not is_timm and is_quick[0] != is_quick[1]:
        raise CheckpointError(
            f"open_clip has the quick GELU in both towers or in none: here are {model.activation} and "
            f"{text.activation}"
        )
    config = {
        "embed_dim": text.embed_dim,
        "vision_cfg": _timm_vision(model) if is_timm else _vision(model),
        "text_cfg": _text(text),
    }
    if text.activation == "quick_gelu":
        config["quick_gelu"] = True
    if is_siglip or text.has_projection_bias or not text.is_causal:
        config |= {"custom_text": True}
    if is_siglip:
        config |= {"init_logit_bias": -10}
    said = timm_json(p, 0)
    names = ("mean", "std", "interpolation")
    mode = "shortest" if said["crop_mode"] == "center" else "squash"
    return {"model_cfg": config, "preprocess_cfg": {n: said[n] for n in names} | {"resize_mode": mode}}


def _layers(activation: str, norm_eps: float) -> dict[str, Any]:
    """What differs from the layers that OpenCLIP has by default."""
    values: dict[str, Any] = {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
    return values | ({} if norm_eps == 1e-5 else {"norm_kwargs": {"eps": norm_eps}})


def _vision(model: Model) -> dict[str, Any]:
    sizes = dims(model)
    height, width = model.image_size
    return {
        "image_size": height if height == width else [height, width],
        "layers": sizes.depth,
        "width": sizes.width,
        "head_width": sizes.width // sizes.num_heads,
        "patch_size": model.patch_size,
        "mlp_ratio": _ratio(sizes),
        **({"ls_init_value": model.layer_scale_init} if model.layer_scale_init is not None else {}),
        **({} if model.use_norm_pre else {"no_ln_pre": True}),
        **_layers(model.activation, model.norm_eps),
    }


def _timm_vision(model: Model) -> dict[str, Any]:
    sizes = dims(model)
    key = (sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_dim, model.patch_size)
    is_square, is_plain = model.image_size[0] == model.image_size[1], not model.num_registers
    if key not in _TIMM_SIGLIP or model.pooling != "map" or not (is_square and is_plain):
        known = ", ".join(_TIMM_SIGLIP.values())
        raise CheckpointError(
            "open_clip takes image towers with registers or without cls from timm by name, and this one is "
            f"none of {known}: write a file (.safetensors), or another format"
        )
    return {
        "image_size": model.image_size[0],
        "timm_model_name": f"{_TIMM_SIGLIP[key]}_{model.image_size[0]}",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _text(text: Text) -> dict[str, Any]:
    sizes = dims(block_settings(text))
    values: dict[str, Any] = {
        "context_length": text.context,
        "vocab_size": text.vocab_size,
        "width": sizes.width,
        "heads": sizes.num_heads,
        "layers": sizes.depth,
        "mlp_ratio": _ratio(sizes),
        **_layers(text.activation, text.norm_eps),
    }
    if not text.is_causal:
        values["no_causal_mask"] = True
    if text.has_projection_bias:
        values["proj_bias"] = True
    if text.pool == "last":
        values["pool_type"] = "last"
    elif text.end_token is not None:
        values |= {"pool_type": "eos", "eos_id": text.end_token}
    return values


def _ratio(sizes: Dims) -> float:
    """The ratio from which OpenCLIP computes mlp_dim, rounding down."""
    ratio = sizes.mlp_dim / sizes.width
    return ratio if int(sizes.width * ratio) == sizes.mlp_dim else (sizes.mlp_dim + 0.5) / sizes.width
