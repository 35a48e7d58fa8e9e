"""Refuses architectures with layers that this project lacks, by their name in config.json and by tensors."""

import re
from collections.abc import Mapping
from typing import Any

from vit_registers.errors import CheckpointError
from vit_registers.interop import lacking
from vit_registers.interop.eva import is_eva_architecture
from vit_registers.interop.hints import Hints
from vit_registers.interop.left_out import search
from vit_registers.interop.names.eva import is_eva
from vit_registers.interop.radio_settings import radio_obstacle

_ROTARY = "rotary positions"
_RELATIVE = "relative positions (a bias of the attention)"
_PARALLEL = "parallel branches in a block"

# Features of timm's architectures that this project lacks. The first pattern that matches gives the reason.
_LACKING = {
    r"vit_.*_sapiens2(_.*)?": "keys and values of fewer heads",
    r"eva02_enormous_.*": "norms after the branches of a block",
    r"vit_(.*_)?s?relpos_.*|test_vit_relpos|beit(v2)?_.*|samvit_.*": _RELATIVE,
    r"vit_.*_rpn_.*": "norms after the branches of a block",
    r"vit_.*_(18x2|xp)_.*": _PARALLEL,
    r"vit_d(little|pwee|wee)_.*": "layers of differential attention",
    r"vit_pwee_.*": _PARALLEL,
    r"vit_.*_r\d+_s\d+_.*|vit_.*_resnet.*": "patch embeddings of several convolutions",
    r"naflexvit_.*": "patches of images of any aspect",
}
_SIZES = "tiny|xsmall|small|medium|mediumd|base|betwixt|little|large|huge|giant|giantopt|gigantic|wee"
_SIZES += "|so150m|so150m2|so400m|intern300m"
_WORDS = r"\d+|36x1|gap|map|reg\d+|clip|quickgelu|siglip|dinov2|tipsv2|plus|miil|in21k|in21ft1k|dino|mae|sam"
_WORDS += r"|radio|v\d"
_SUPPORTED = re.compile(
    rf"vit_({_SIZES})_patch\d+(_({_WORDS}))+|deit3?_({_SIZES})(_distilled)?_patch\d+_\d+(_in21ft1k)?|"
    r"eva_large_patch14_\d+|flexivit_\w+|test_vit[23]?|beit3_(base|large|giant)_patch\d+_\d+"
)

# transformers' model_type -> the family that has its names and layers.
MODEL_TYPES = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "deit": "deit",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "vit": "vit",
    "vit_mae": "vit",
    "vit_msn": "vit",
    "ijepa": "vit",
    "metaclip_2": "clip",
    "metaclip_2_vision_model": "clip",
    "radio": "radio",
}
_KNOWN = f"known are {', '.join(MODEL_TYPES)}"
_LACKING_TYPES = {
    r"eva.*|mlcd.*|pixtral.*|vjepa2|qwen.*|llama4.*|rope_vit|sam3.*": _ROTARY,
    r"beit|data2vec-vision|sam|sam_vision_model|vitdet": _RELATIVE,
    r"internvl_vision": "norms of queries and keys",
}

# Tensors that only models with unsupported layers have.
_EVIDENCE = {
    r"(.*\.)?rope\.(?!freqs(_cos|_sin)?$).*": _ROTARY,  # the others are read: names/eva.py
    r"(.*\.)?rope_embed\.(?!periods$).*": _ROTARY,  # periods of DINOv3 are read: names/dinov3.py
    r"(.*\.)?(rope_embeddings|rotary|rotary_emb|rotary_pos_emb)\..*": _ROTARY,
    r"(.*\.)?(inv_freq|freqs_(cis|t_x|t_y)|bands)|(.*(?<!rope)\.)?freqs(_cos|_sin)?": _ROTARY,
    r"(.*(?<!rope_embed)\.)?periods": _ROTARY,
    r"(.*\.)?(rel_pos.*|relative_position.*)": _RELATIVE,
    r".*\.(q|k|query|key)_?(norm|layernorm|ln)\..*|.*\.(norm|ln)_(q|k)\..*": "norms of queries and keys",
    r".*(attn|mlp|self_attn|attention)\.ln\..*": "norms inside a branch",
    r".*\.attn\.(proj_[lw]|gating_param).*": "other kinds of attention",
    r".*\.(attns?|ffns?)\.\d+\..*": _PARALLEL,
}


def _refusal(where: str, what: str, feature: str) -> CheckpointError:
    return CheckpointError(f"{where}: {what} cannot be loaded: {feature} are not supported yet")


def check_architecture(where: str, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError if config.json names a model with unsupported layers."""
    if "architecture" in settings:
        name = settings["architecture"]
        bare = name.split(".")[0]
        if feature := search(_LACKING | lacking.TIMM, bare):
            raise _refusal(where, f"'{name}' of timm", feature)
        if not _SUPPORTED.fullmatch(bare) and not is_eva_architecture(bare):
            raise CheckpointError(
                f"{where}: '{name}' of timm is no plain Vision Transformer, and is not supported: known are "
                "timm's vit_*, deit_*, deit3_*, flexivit_*, eva_* and eva02_*"
            )
    elif "model_type" in settings:
        kind = settings["model_type"]
        if kind == "radio" and (feature := radio_obstacle(settings)):
            raise _refusal(where, "this RADIO", feature)
        if kind in MODEL_TYPES:
            return
        feature = search(_LACKING_TYPES | lacking.TRANSFORMERS, kind) or "models of this kind"
        refusal = _refusal(where, f"model_type='{kind}' of transformers", feature)
        raise CheckpointError(f"{refusal}; {lacking.INSTEAD.get(kind, _KNOWN)}")
    elif "model_cfg" in settings:
        _check_open_clip(where, settings["model_cfg"])


def _check_open_clip(where: str, config: Mapping[str, Any]) -> None:
    if "multimodal_cfg" in config:
        raise _refusal(where, "CoCa of OpenCLIP", lacking.COCA)
    if isinstance(config["vision_cfg"].get("layers"), list):
        raise _refusal(where, "a ResNet of OpenCLIP", lacking.RESNET)


def check_tensors(where: str, file_names: Mapping[str, str]) -> None:
    """Raises CheckpointError if unsupported layers have one of the names; {plain name: name in the file}."""
    for name, in_file in file_names.items():
        if feature := search(_EVIDENCE, name):
            raise _refusal(where, f"a model with '{in_file}'", feature)


def check_told(where: str, source: str, shapes: Mapping[str, Any], hints: Hints) -> None:
    """Raises CheckpointError if tensors of timm fit several models, some with unsupported layers.

    `shapes` are by plain names, of tensors without config.json.
    """
    if source != "timm" or is_eva(shapes):
        return
    has_pool = "attn_pool.latent" in shapes
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    is_plain = "cls_token" not in shapes and "reg_token" not in shapes
    if is_plain and not has_pool and (width, patch) == (768, 16) and hints.num_heads is None:
        raise CheckpointError(
            f"{where} pools the mean without a cls token, and its tensors do not tell timm's "
            "vit_base_patch16_gap_224 (16 heads) and vit_base_patch16_rpn_224 (other norms, not supported) "
            "from others: give architecture, timm's name of the model, or num_heads if it is not the latter"
        )
    is_siglip = is_plain and (has_pool or "norm.weight" in shapes)  # others have fc_norm to pool the mean
    if is_siglip and (width, patch) in _TANH_SIGLIPS and hints.hidden_act is None:
        raise CheckpointError(
            f"{where} may be a SigLIP image tower, of which some of this width and patch have another GELU: "
            "give architecture, timm's name of the model, or hidden_act ('gelu_tanh' or 'gelu')"
        )


_TANH_SIGLIPS = {(768, 32), (1152, 16), (1536, 16), (1024, 16)}  # timm's _siglip_ with tanh, of some sizes
