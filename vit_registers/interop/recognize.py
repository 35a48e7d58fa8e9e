"""Recognizes the family of a checkpoint by its tensor names, and by config.json if there is one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vit_registers.config import nearest
from vit_registers.errors import CheckpointError, ConfigError
from vit_registers.interop import dinov3
from vit_registers.interop.architectures import MODEL_TYPES, check_tensors
from vit_registers.interop.containers import Weights
from vit_registers.interop.eva import DINOV3_ASSUMED, guess_rotation, original_rotation
from vit_registers.interop.hints import Hints
from vit_registers.interop.names import dinov2_timm_clip as nt
from vit_registers.interop.names.dinov3 import HF_DINOV3, dinov3_names, hf_dinov3_names
from vit_registers.interop.names.eva import PE, eva02_names, eva_names, is_eva, is_eva02
from vit_registers.interop.names.radio import radio_names
from vit_registers.interop.unwrap import HEADS, PATCH_NAMES, SOURCES, pick_network


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecognizedWeights:
    """A checkpoint whose family is known: its tensors by plain names, and what describes them."""

    source: str
    kind: str | None  # transformers: clip, deit, dinov2 or vit; timm: eva, a class of its own
    names: nt.TensorNames
    weights: Weights  # by plain names, without prefix
    file: Weights  # all tensors, by the names in the file
    settings: Mapping[str, Any]  # of config.json; empty without one
    hints: Hints
    file_names: dict[str, str]  # plain names -> names in the file
    prefix: str
    left_out: dict[str, str]  # names in the file -> what they are
    text: dict[str, str]  # of those, the text tower and what joins it: plain names -> names in the file
    note: str = ""  # assumptions

    @property
    def family(self) -> str:
        """The source; for transformers and timm with the kind of model."""
        return f"{self.source}/{self.kind}" if self.kind else self.source

    def in_file(self, name: str) -> str:
        """The name in the file of a tensor; also of one that the file does not have."""
        return self.file_names.get(name, name if HEADS.fullmatch(name) else self.prefix + name)


def recognize(
    weights: Weights, *, source: str, settings: Mapping[str, Any], hints: Hints
) -> RecognizedWeights:
    """The family of `weights`. `settings` is the content of the config.json beside it, or empty.

    Of the hints, `params` and `leave_out` are used: see unwrap.pick_network. Raises CheckpointError if the
    family is none of SOURCES, or not `source`.
    """
    if source not in ("auto", *SOURCES):
        raise ConfigError(f"source='{source}' is unknown: {nearest(source, ('auto', *SOURCES))}")
    network = pick_network(weights, params=hints.params, leave_out=hints.leave_out)
    patch = network.patch
    candidates = PATCH_NAMES[patch]
    if source != "auto" and source not in candidates:
        raise CheckpointError(
            f"{weights.where}: source='{source}', but the tensors have the names of {' or '.join(candidates)}"
        )
    if (told := _told_family(settings)) and not told & set(candidates):
        raise CheckpointError(
            f"{weights.where}: the config.json beside it is of {' or '.join(sorted(told))}, but the tensors "
            f"have the names of {' or '.join(candidates)}"
        )
    check_tensors(weights.where, network.file_names)
    note = ""
    if source == "auto":  # tensors that are left out are evidence too
        names = {*network.file_names, *network.asked}
        source, note = _guess(patch, names, weights, settings)
    table, kind = _names(source, patch, set(network.file_names), settings)
    if isinstance(table, nt.TorchNames) and table.patch.format("weight") != patch:
        raise CheckpointError(
            f"{weights.where}: the config.json beside it says model_type='{settings.get('model_type')}', but "
            f"the tensors have the names of another model, such as '{network.file_names[patch]}'"
        )
    weights_of_network = weights.select(network.file_names)
    if kind == "eva" and "rotation" not in settings:
        rotation, assumed = guess_rotation(weights.where, weights_of_network.shapes)
        settings, note = {**settings, "rotation": rotation}, assumed
        if assumed.startswith(DINOV3_ASSUMED):
            settings = {**settings, "global_pool": "avg"}
    elif source == "dinov3":
        settings = {**settings, **_of_periods(table, weights_of_network, network.file_names)}
    elif kind == "dinov3" and "rotation" not in settings:
        settings = {**settings, "rotation": dinov3.TRAINED}
    elif source in ("eva02", "pe"):
        settings = {**settings, "rotation": original_rotation(source, network.file_names)}
    return RecognizedWeights(
        source=source,
        kind=kind,
        names=table,
        weights=weights_of_network,
        file=weights,
        settings=settings,
        hints=hints,
        file_names=network.file_names,
        prefix=network.prefix,
        left_out=network.left_out,
        text=network.text,
        note="; ".join(filter(None, (network.note, note))),
    )


def _of_periods(names: nt.TensorNames, weights: Weights, file_names: Mapping[str, str]) -> dict[str, Any]:
    """The rotation and the number of heads that the periods of DINOv3 tell."""
    assert isinstance(names, nt.TorchNames) and names.periods is not None
    if names.periods not in weights:
        raise CheckpointError(
            f"{weights.where}: '{names.periods}', the periods of rotary positions, is missing"
        )
    width, (number,) = weights.shapes[names.cls][-1], weights.shapes[names.periods]
    rotation = dinov3.rotation_of_periods(weights[names.periods], file_names[names.periods], weights.where)
    return {"rotation": rotation, "num_attention_heads": width // (4 * number)}


def _told_family(settings: Mapping[str, Any]) -> set[str]:
    """The sources whose config.json has these settings; empty without config.json."""
    if "model_type" in settings:
        return {"radio"} if settings["model_type"] == "radio" else {"transformers"}
    if "architecture" in settings:
        return {"timm"}
    return {"clip", "open_clip"} if "model_cfg" in settings else set()


def _guess(patch: str, names: set[str], weights: Weights, settings: Mapping[str, Any]) -> tuple[str, str]:
    candidates = PATCH_NAMES[patch]
    if len(candidates) == 1:
        return candidates[0], ""
    if patch == "conv1.weight":
        if "attn_pool.probe" in names or ("ln_pre.weight" in names and "ln_post.weight" not in names):
            return "pe", ""
        if any(name.endswith("input_resolution") for name in weights.shapes):
            return "clip", ""  # OpenAI's files have it
        if "model_cfg" in settings:
            return "open_clip", ""
        raise CheckpointError(
            f"{weights.where} is a CLIP image tower, and its tensors do not determine its GELU: "
            "give source='clip' (OpenAI's quick GELU) or source='open_clip' (exact GELU)"
        )
    has = lambda part: any(part in name for name in names)  # noqa: E731
    if "storage_tokens" in names or "rope_embed.periods" in names:
        return "dinov3", ""
    if is_eva02(names):
        return "eva02", ""
    is_like_deit = has(".gamma_1") and "pos_embed" in names and not has("norm_pre.")  # in its names too
    if is_eva(names) and ("rope.freqs" in names or not is_like_deit):
        return "timm", ""
    if "architecture" in settings or (has("reg_token") and not has("reg_tokens")) or has("norm_pre."):
        return "timm", ""
    if has("register_tokens") or "mask_token" in names:
        return "dinov2", ""
    if has("masked_embed") or any(name.startswith(("teacher.", "student.")) for name in weights.shapes):
        return "dino", ""
    if has("reg_tokens") or has("dist_token"):
        return "deit", ""
    if has(".gamma_1"):
        if any(name.startswith("model.") for name in weights.shapes):
            note = "a checkpoint of DeiT's training code is assumed to be DeiT-III, without rotary positions"
            return "deit", note
        raise CheckpointError(
            f"{weights.where} may be DeiT-III, iBOT, or timm's vit_*_rope_ape_*: rotary positions are in no "
            "tensor. Give source='deit', source='dino', or architecture, timm's name of the model"
        )
    if weights.container == "torch" and not has("head.") and not has("fc_norm") and not has(".ls1."):
        return "dino", "a headless .pth without LayerScale is assumed to be DINO; source='timm' otherwise"
    return "timm", ""


def _names(
    source: str, patch: str, names: set[str], settings: Mapping[str, Any]
) -> tuple[nt.TensorNames, str | None]:
    if source == "transformers":
        return _transformers_names(patch, names, settings)
    if source == "big_vision":
        is_original = nt.BIG_VISION_ORIGINAL.positions in names or any("MlpBlock_3" in name for name in names)
        is_scanned = any(name.startswith("Transformer/encoderblock/") for name in names)
        if is_original:
            return nt.BIG_VISION_ORIGINAL, None
        return (nt.BIG_VISION_SCANNED if is_scanned else nt.BIG_VISION), None
    if source == "dinov3":
        return dinov3_names(names), None
    if source == "eva02":
        return eva02_names(names), None
    if source == "pe":
        return PE, None
    if source == "radio":
        return radio_names(names), None
    if source == "timm":
        is_told = "architecture" in settings
        is_class_eva = "rotation" in settings if is_told else is_eva(names)
        if is_class_eva:
            return eva_names(names), "eva"
    if source == "mup_vit":
        if patch == "patchifier.weight":
            return nt.MUP_VIT_MAIN, None
        if any(name.startswith("encoder.layers.encoder_layer_") for name in names):
            return nt.MUP_VIT_OLDER, None
        is_flex = any(name.endswith("out_proj_weight") for name in names)
        return (nt.MUP_VIT_FLEX if is_flex else nt.MUP_VIT), None
    if "dist_token" in names:
        return (nt.DEIT_1 if "head_dist.weight" in names else nt.DEIT_1_ONE_HEAD), None
    return nt.WRITTEN_NAMES[source], None


def _transformers_names(
    patch: str, names: set[str], settings: Mapping[str, Any]
) -> tuple[nt.TensorNames, str]:
    if "model_type" in settings:
        kind = MODEL_TYPES[settings["model_type"]]
    elif patch == HF_DINOV3.patch.format("weight"):
        kind = "dinov3"
    elif patch == "embeddings.patch_embedding.weight":
        kind = "clip" if "embeddings.class_embedding" in names else "siglip"
    elif "embeddings.distillation_token" in names:
        kind = "deit"
    else:
        kind = "dinov2" if any("layer_scale1" in name for name in names) else "vit"
    if kind == "dinov3":
        return hf_dinov3_names(names), kind
    is_in_memory = any(".q_proj." in name for name in names)
    table = nt.IN_MEMORY[kind] if is_in_memory else nt.WRITTEN_NAMES[f"transformers/{kind}"]
    if "cls_classifier.weight" in names:
        table = dataclasses.replace(table, head=nt.HF_DEIT_HEADS)
    return table, kind
