"""Refuses architectures with layers that this project lacks, by their name in config.json and by tensors."""

import re
from collections.abc import Mapping
from typing import Any

from vit_registers.errors import CheckpointError
from vit_registers.interop.hints import Hints
from vit_registers.interop.left_out import search

_ROTARY = "rotary positions"
_RELATIVE = "relative positions (a bias of the attention)"
_PARALLEL = "parallel branches in a block"

# Features of timm's architectures that this project lacks. The first pattern that matches gives the reason.
_LACKING = {
    r"vit_(.*_)?(rope|pe|dinov3|lingbot|sapiens2)(_.*)?|eva02_.*": _ROTARY,
    r"vit_(.*_)?s?relpos_.*|test_vit_relpos|beit(v2)?_.*|samvit_.*": _RELATIVE,
    r"vit_.*_rpn_.*": "norms after the branches of a block",
    r"vit_.*_(18x2|xp)_.*": _PARALLEL,
    r"vit_d(little|pwee|wee)_.*": "layers of differential attention",
    r"vit_pwee_.*": _PARALLEL,
    r"vit_.*_radio_.*|vit_intern.*": "models without a norm after the last block",
    r"vit_.*_r\d+_s\d+_.*|vit_.*_resnet.*": "patch embeddings of several convolutions",
    r"eva_giant_.*": "separate biases of queries and values",
    r"naflexvit_.*": "patches of images of any aspect",
}
_SIZES = "tiny|xsmall|small|medium|mediumd|base|betwixt|little|large|huge|giant|giantopt|gigantic|wee"
_SIZES += "|so150m|so150m2|so400m"
_WORDS = r"\d+|36x1|gap|map|reg\d+|clip|quickgelu|siglip|dinov2|tipsv2|plus|miil|in21k|in21ft1k|dino|mae|sam"
_SUPPORTED = re.compile(
    rf"vit_({_SIZES})_patch\d+(_({_WORDS}))+|deit3?_({_SIZES})(_distilled)?_patch\d+_\d+(_in21ft1k)?|"
    r"eva_large_patch14_\d+|flexivit_\w+|test_vit2?"
)

# transformers' model_type -> the family that has its names and layers.
MODEL_TYPES = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "deit": "deit",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "vit": "vit",
    "vit_mae": "vit",
}
_KNOWN = f"known are {', '.join(MODEL_TYPES)}"
_LACKING_TYPES = {
    r"dinov3_vit|eva.*|mlcd.*|pixtral.*|vjepa2|qwen.*|llama4.*|rope_vit|sam3.*": _ROTARY,
    r"beit|data2vec-vision|sam|sam_vision_model|vitdet": _RELATIVE,
    r"internvl_vision": "norms of queries and keys",
}

# Tensors that only models with unsupported layers have.
_EVIDENCE = {
    r"(.*\.)?(rope|rope_embed|rope_embeddings|rotary|rotary_emb|rotary_pos_emb)\..*": _ROTARY,
    r"(.*\.)?(inv_freq|periods|freqs(_cis|_cos|_sin|_t_x|_t_y)?|bands)": _ROTARY,
    r"(.*\.)?(rel_pos.*|relative_position.*)": _RELATIVE,
    r".*\.(q|k|query|key)_?(norm|layernorm|ln)\..*|.*\.(norm|ln)_(q|k)\..*": "norms of queries and keys",
    r".*(attn|mlp|self_attn|attention)\.(norm|ln|ffn_ln|inner_attn_ln)\..*": "norms inside a branch",
    r".*\.attn\.(q|k|v)_bias": "separate biases of queries and values",
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
        if feature := search(_LACKING, bare):
            raise _refusal(where, f"'{name}' of timm", feature)
        if not _SUPPORTED.fullmatch(bare):
            raise CheckpointError(
                f"{where}: '{name}' of timm is not supported: known are timm's vit_*, deit_*, deit3_*, "
                "flexivit_* and eva_large_* of plain blocks"
            )
    elif "model_type" in settings:
        kind = settings["model_type"]
        if kind in MODEL_TYPES:
            return
        if feature := search(_LACKING_TYPES, kind):
            refusal = _refusal(where, f"model_type='{kind}' of transformers", feature)
            raise CheckpointError(f"{refusal}; {_KNOWN}")
        raise CheckpointError(f"{where}: config.json says model_type='{kind}': {_KNOWN}")


def check_tensors(where: str, file_names: Mapping[str, str]) -> None:
    """Raises CheckpointError if unsupported layers have one of the names; {plain name: name in the file}."""
    for name, in_file in file_names.items():
        if feature := search(_EVIDENCE, name):
            raise _refusal(where, f"a model with '{in_file}'", feature)


def check_told(where: str, source: str, shapes: Mapping[str, Any], hints: Hints) -> None:
    """Raises CheckpointError if tensors of timm fit several models, some with unsupported layers.

    `shapes` are by plain names, of tensors without config.json.
    """
    if source != "timm":
        return
    has_pool = "attn_pool.latent" in shapes
    if has_pool and "norm_pre.weight" in shapes:
        raise CheckpointError(
            f"{where} has attention pooling and a norm before the blocks, as timm's vit_pe_core_* have: "
            "rotary positions are in no tensor, and are not supported yet. If it is another model, give "
            "architecture, timm's name of it"
        )
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    is_plain = "cls_token" not in shapes and "reg_token" not in shapes
    if is_plain and not has_pool and (width, patch) == (768, 16) and hints.num_heads is None:
        raise CheckpointError(
            f"{where} pools the mean without a cls token, and its tensors do not tell timm's "
            "vit_base_patch16_gap_224 (16 heads) and vit_base_patch16_rpn_224 (other norms, not supported) "
            "from others: give architecture, timm's name of the model, or num_heads if it is not the latter"
        )
    if is_plain and has_pool and (width, patch) in _TANH_SIGLIPS and hints.hidden_act is None:
        raise CheckpointError(
            f"{where} is a SigLIP image tower, of which some of this width and patch have another GELU: give "
            "architecture, timm's name of the model, or hidden_act ('gelu_tanh' or 'gelu')"
        )


_TANH_SIGLIPS = {(768, 32), (1152, 16), (1536, 16), (1024, 16)}  # timm's _siglip_ with tanh, of some sizes
