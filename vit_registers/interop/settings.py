"""Reads the config.json beside the weights, in the vocabulary of transformers that infer.py uses."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_registers.errors import CheckpointError
from vit_registers.interop.architectures import MODEL_TYPES
from vit_registers.interop.dinov3 import transformers_rotation
from vit_registers.interop.eva import is_timm_dinov3, timm_rotation
from vit_registers.interop.radio_settings import is_radio, radio_settings


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the image model in the config.json beside the weights, or empty; see plain_settings."""
    return plain_settings(read_whole_settings(path))


def read_whole_settings(path: Path) -> dict[str, Any]:
    """The config.json (transformers, timm) or open_clip_config.json beside the weights, or empty."""
    folder = path if path.is_dir() else path.parent
    for name in ("config.json", "open_clip_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        values = read_json(file)
        if not isinstance(values, dict):
            continue
        if {"model_type", "architecture", "model_cfg"} & set(values) or is_radio(values):
            values = {name: value for name, value in values.items() if value is not None}
            check_objects(str(file), values)
            return values
    return {}


def read_json(file: Path) -> Any:
    """The value in a JSON file. Raises CheckpointError if it cannot be read."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def check_objects(file: str, values: dict[str, Any]) -> None:
    """Raises CheckpointError if names or sections of settings have the wrong type; `file` has them."""
    named = [(name, values.get(name, ""), str) for name in ("model_type", "architecture")]
    sections = ("vision_config", "text_config", "model_args", "pretrained_cfg", "preprocess_cfg")
    named += [(name, values.get(name) or {}, dict) for name in sections]
    if "model_cfg" in values:
        config = values["model_cfg"]
        vision = config.get("vision_cfg") if isinstance(config, dict) else None
        named.append(("model_cfg.vision_cfg", vision, dict))
        if isinstance(config, dict):
            named.append(("model_cfg.text_cfg", config.get("text_cfg") or {}, dict))
        if isinstance(vision, dict):
            parts = ("act_kwargs", "norm_kwargs")
            named += [(f"vision_cfg.{name}", vision.get(name) or {}, dict) for name in parts]
    wrong = [f"{name}={value!r}" for name, value, kind in named if not isinstance(value, kind)]
    pretrained = values.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    is_size = isinstance(size, list) and len(size) == 3 and all(type(n) is int and n > 0 for n in size)
    if size is not None and not is_size:
        wrong.append(f"pretrained_cfg.input_size={size!r}")
    if wrong:
        raise CheckpointError(
            f"{file} cannot be used: {'; '.join(wrong)}: must be names, objects of settings, and a size of "
            "three numbers"
        )


def with_architecture(settings: Mapping[str, Any], architecture: str | None, where: str) -> Mapping[str, Any]:
    """The settings with the name of a timm model, if config.json has none.

    Raises CheckpointError if config.json has another name.
    """
    if architecture is None or settings.get("architecture") == architecture:
        return settings
    if settings:
        said = settings.get("architecture", settings.get("model_type", "a model of open_clip"))
        raise CheckpointError(f"{where}: architecture='{architecture}', but config.json says '{said}'")
    return plain_settings({"architecture": architecture})


def plain_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of the image model in transformers' terms, also of composite CLIP, timm and open_clip."""
    if isinstance(values.get("vision_config"), dict):
        whole = {name: values[name] for name in ("model_type", "projection_dim") if name in values}
        said = {name: value for name, value in values["vision_config"].items() if value is not None}
        values = said | whole
    if values.get("model_type") == "dinov3_vit":
        values = values | {"rotation": transformers_rotation(values)}
    if is_radio(values):
        return radio_settings(values)
    if MODEL_TYPES.get(str(values.get("model_type"))) == "clip":
        values = {"hidden_act": "quick_gelu"} | values  # transformers' default
    if "model_cfg" in values:
        return _open_clip_settings(values)
    return _timm_settings(values) if "architecture" in values else values


def _open_clip_settings(values: dict[str, Any]) -> dict[str, Any]:
    """open_clip's config, with the layers of its image tower in transformers' and timm's terms."""
    vision = values["model_cfg"]["vision_cfg"]
    if "timm_model_name" in vision:
        tower = {"architecture": vision["timm_model_name"], "pretrained_cfg": {}}
        return {"preprocess_cfg": values.get("preprocess_cfg") or {}} | _timm_settings(tower)
    said: dict[str, Any] = {}
    if (vision.get("act_kwargs") or {}).get("approximate") == "tanh":
        said["hidden_act"] = "gelu_tanh"
    if "eps" in (vision.get("norm_kwargs") or {}):
        said["layer_norm_eps"] = vision["norm_kwargs"]["eps"]
    if vision.get("pool_type") == "avg":
        said |= {"global_pool": "avg", "is_norm_after_pool": vision.get("final_ln_after_pool", False)}
    return values | said


# Settings that the names of timm's models imply and tensors and widths do not (timm 1.0.31).
_TIMM = {
    r".*_clip_quickgelu_.*": {"hidden_act": "quick_gelu"},
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip_.*": {"hidden_act": "gelu_tanh"},
    r"vit_large_patch16_siglip_(gap_)?512": {"hidden_act": "gelu_tanh"},
    r"vit_base_patch16_gap_224": {"num_attention_heads": 16},
    r"test_vit2?": {"num_attention_heads": 2},
    r"test_vit3": {"num_attention_heads": 3, "pool_include_prefix": True},
    r"vit_giant_patch16_radio_.*": {"num_attention_heads": 24},
    r"((?!eva).*_clip_|beit3_|vit_pe_).*|.*_(dinov3|dinov3_qkvb|lingbot)(\..*)?": {"layer_norm_eps": 1e-5},
}


def _timm_settings(values: dict[str, Any]) -> dict[str, Any]:
    """timm's config.json, with the settings that its architecture and model arguments imply."""
    name, args = str(values["architecture"]), values.get("model_args") or {}
    said: list[dict[str, Any]] = [{"layer_norm_eps": 1e-6}]  # no argument of config.json changes it
    said += [known for pattern, known in _TIMM.items() if re.fullmatch(pattern, name)]
    size = (values.get("pretrained_cfg") or {}).get("input_size", [])[1:]
    theirs = {
        "image_size": args.get("img_size", size or None),
        "global_pool": args.get("global_pool"),
        "num_attention_heads": args.get("num_heads"),
        "hidden_act": args.get("act_layer"),
        "pool_include_prefix": args.get("pool_include_prefix"),
    }
    rotation = timm_rotation(name, args)
    if rotation is not None:
        if "global_pool" not in values and is_timm_dinov3(name):
            said.append({"global_pool": "avg"})  # without fc_norm, which tells others
        usual = 8 if name.startswith("vit_pe_core_") else None
        theirs |= {"rotation": rotation, "pool_num_heads": args.get("attn_pool_num_heads", usual)}
    return values | {key: value for d in (*said, theirs) for key, value in d.items() if value is not None}
