"""Compares config.json with the tensors. A checkpoint that disagrees is not loaded.

Each vocabulary (transformers, timm's model_args, open_clip's vision_cfg) has a table of its settings: the
JSON type, and the value that a Model implies. Settings that are absent or do not affect outputs are not
compared.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.architectures import MODEL_TYPES
from vit_registers.interop.dinov3 import DINOV3_SETTINGS
from vit_registers.interop.eva import EVA_ARGUMENTS
from vit_registers.interop.hints import Hints
from vit_registers.models.tokens import patch_grid


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    sides: Any = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
    return all(_is_integer(side) and side > 0 for side in sides)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "an integer": _is_integer,
    "a positive integer": lambda value: _is_integer(value) and value > 0,
    "a positive integer or two": _is_size,
    "a number": _is_number,
    "a positive number": lambda value: _is_number(value) and value > 0,
    "true or false": lambda value: isinstance(value, bool),
    "a string": lambda value: isinstance(value, str),
    "an object": lambda value: isinstance(value, dict),
}


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A setting: its JSON type, and the value that the tensors imply, given the value in config.json."""

    json: str  # a key of _TYPES
    have: Callable[[Model, Any], Any] | None = None  # None: any value of that type


def _as_said(have: tuple[int, int], said: Any) -> Any:
    """(height, width) in the form of `said`: one number for a square, or a list."""
    return list(have) if isinstance(said, list | tuple) or have[0] != have[1] else have[0]


def _image_size(model: Model, said: Any) -> Any:
    """`said` if its patches are those of the position table, else the image size of the model."""
    sides = said if isinstance(said, list | tuple) else (said, said)
    grid = tuple(side // model.patch_size for side in sides)
    return (
        said if grid == patch_grid(model.image_size, model.patch_size) else _as_said(model.image_size, said)
    )


def _sizes(model: Model) -> tuple[int, int]:
    """(width, hidden size of the MLPs), which are set in every inferred model. Heads are not checked yet."""
    assert model.width is not None and model.mlp_dim is not None
    return model.width, model.mlp_dim


def _ratio(model: Model, said: float, fused: int = 1) -> float:
    """`said` if this MLP ratio gives the hidden size of the tensors, else the ratio of the tensors."""
    width, hidden = _sizes(model)
    hidden *= fused if model.mlp == "swiglu" else 1
    return said if int(width * said) == hidden else hidden / width


def _dinov2_ratio(model: Model, said: float) -> float:
    if model.mlp == "swiglu":
        width, hidden = _sizes(model)
        given = (int(int(width * said) * 2 / 3) + 7) // 8 * 8
        return said if given == hidden else round(hidden * 1.5 / width, 3)
    return _ratio(model, said)


def _heads(model: Model, said: Any) -> Any:
    return said if model.width % said == 0 else f"a width of {model.width}"


_WIDTH = _Rule("a positive integer", lambda m, _: m.width)
_DEPTH = _Rule("a positive integer", lambda m, _: m.depth)
_HEADS = _Rule("a positive integer", _heads)
_IMAGE = _Rule("a positive integer or two", _image_size)
_PATCH = _Rule("a positive integer or two", lambda m, said: _as_said((m.patch_size, m.patch_size), said))
_CHANNELS = _Rule("a positive integer", lambda m, _: m.channels)
_BIAS = _Rule("true or false", lambda m, _: m.use_qkv_bias)
_EPS = _Rule("a positive number")
_ACT = _Rule("a string")

_TRANSFORMERS = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": _DEPTH,
    "num_attention_heads": _HEADS,
    "image_size": _IMAGE,
    "patch_size": _PATCH,
    "num_channels": _CHANNELS,
    "hidden_act": _ACT,
    "layer_norm_eps": _EPS,
}
_HIDDEN = _Rule("a positive integer", lambda m, _: m.mlp_dim)
_OUTPUTS = _Rule("a positive integer", lambda m, said: m.num_classes or said)
_LABELS = {
    "id2label": _Rule("an object"),
    "num_labels": _Rule("an integer", lambda m, said: m.num_classes or said),
}
_BY_KIND = {
    "dinov3": {name: _Rule(*rule) for name, rule in DINOV3_SETTINGS.items()},
    "clip": {"intermediate_size": _HIDDEN, "projection_dim": _OUTPUTS},
    "siglip": {
        "intermediate_size": _HIDDEN,
        "vision_use_head": _Rule("true or false", lambda m, _: m.pooling == "map"),
    },
    "vit": {"intermediate_size": _HIDDEN, "qkv_bias": _BIAS} | _LABELS,
    "deit": {"intermediate_size": _HIDDEN, "qkv_bias": _BIAS} | _LABELS,
    "radio": {
        "mlp_ratio": _Rule("a positive number", _dinov2_ratio),
        "use_swiglu_ffn": _Rule("true or false", lambda m, _: m.mlp == "swiglu"),
        "max_img_size": _IMAGE,
        "qkv_bias": _BIAS,
    },
    "dinov2": {
        "mlp_ratio": _Rule("a positive number", _dinov2_ratio),
        "use_swiglu_ffn": _Rule("true or false", lambda m, _: m.mlp == "swiglu"),
        "num_register_tokens": _Rule("an integer", lambda m, _: m.num_registers),
        "qkv_bias": _BIAS,
    }
    | _LABELS,
}


def _layer_scale(model: Model, said: Any) -> Any:
    """`said` if it implies LayerScale exactly when the model has it. Weights do not keep its value."""
    has = model.layer_scale_init is not None
    return said if has == bool(said) else "LayerScale" if has else "no LayerScale"


def _is(value: Any) -> Callable[[Model, Any], Any]:
    """The value of a setting that is the same in all models of this project."""
    return lambda model, said: value


def _global_pool(model: Model, said: str) -> str:
    have = {"gap": "avg", "map": "map"}.get(model.pooling, "token")
    return said if said == "" and not model.num_classes else have


def _no_embed_class(model: Model, said: bool) -> bool:
    if not model.use_cls and not model.num_registers:
        return said
    return model.extra_positions == "none" and not (model.use_cls and model.has_cls_position)


def _prefix_pooled(model: Model, said: bool) -> bool:
    if model.pooling == "map":
        return model.pool_tokens == "all" if model.use_cls + model.num_registers else said
    return said if model.pooling != "gap" or not model.use_cls + model.num_registers else False


_TIMM = {
    "embed_dim": _WIDTH,
    "depth": _DEPTH,
    "num_heads": _HEADS,
    "img_size": _IMAGE,
    "patch_size": _PATCH,
    "in_chans": _CHANNELS,
    "num_classes": _Rule("an integer", lambda m, _: m.num_classes),
    "reg_tokens": _Rule("an integer", lambda m, _: m.num_registers),
    "mlp_ratio": _Rule("a positive number", lambda m, said: _ratio(m, said, fused=2)),
    "class_token": _Rule("true or false", lambda m, _: m.use_cls),
    "no_embed_class": _Rule("true or false", _no_embed_class),
    "qkv_bias": _BIAS,
    "proj_bias": _Rule("true or false", _is(True)),
    "pre_norm": _Rule("true or false", lambda m, _: m.use_norm_pre),
    "final_norm": _Rule("true or false", lambda m, _: m.use_final_norm),
    "fc_norm": _Rule("true or false", lambda m, _: m.use_norm_after_pool),
    "pool_include_prefix": _Rule("true or false", _prefix_pooled),
    "init_values": _Rule("a number", _layer_scale),
    "global_pool": _Rule("a string", _global_pool),
    "pos_embed": _Rule("a string", _is("learn")),
    "act_layer": _ACT,
    "norm_layer": _Rule("a string", _is("layernorm")),
    "qk_norm": _Rule("true or false", _is(False)),
    "scale_attn_norm": _Rule("true or false", lambda m, _: m.use_attention_norm),
    "scale_mlp_norm": _Rule("true or false", lambda m, _: m.use_mlp_norm),
}
# Arguments of timm that do not affect outputs at the image size of training.
_TIMM_TRAINING = {"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"}
_TIMM_TRAINING |= {"drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "dynamic_img_pad"}
_TIMM_TRAINING |= {"pretrained", "checkpoint_path", "pretrained_cfg", "scriptable", "exportable"}
_TIMM_TRAINING |= {"head_init_scale"}
_OPEN_CLIP = {
    "width": _WIDTH,
    "layers": _DEPTH,
    "head_width": _Rule("a positive integer", lambda m, said: said if m.width % said == 0 else m.width),
    "image_size": _IMAGE,
    "patch_size": _PATCH,
    "mlp_ratio": _Rule("a positive number", _ratio),
    "ls_init_value": _Rule("a number", _layer_scale),
    "no_ln_pre": _Rule("true or false", lambda m, _: not m.use_norm_pre),
    "attentional_pool": _Rule("true or false", _is(False)),
    "pool_type": _Rule("a string", lambda m, _: "avg" if m.pooling == "gap" else "tok"),
    "pos_embed_type": _Rule("a string", _is("learnable")),
}


def _said(settings: Mapping[str, Any]) -> list[tuple[str, _Rule, Any]]:
    """(name, rule, value) of the settings of config.json that have a rule."""
    if "model_cfg" in settings:
        config = settings["model_cfg"]
        vision = config["vision_cfg"]
        if "timm_model_name" in vision:
            return []
        sections = [
            ("vision_cfg.", _OPEN_CLIP, vision),
            ("norm_kwargs.", {"eps": _EPS}, vision.get("norm_kwargs") or {}),
            ("model_cfg.", {"embed_dim": _OUTPUTS}, config),
        ]
    elif "architecture" in settings:
        rules = _timm_rules(settings)
        top = {name: rules[name] for name in ("num_classes", "global_pool")}
        sections = [("model_args.", rules, settings.get("model_args") or {}), ("", top, settings)]
    else:
        sections = [("", _TRANSFORMERS | _BY_KIND.get(_kind(settings), {}), settings)]
    return [
        (prefix + name, rule, values[name])
        for prefix, rules, values in sections
        for name, rule in rules.items()
        if name in values
    ]


def _timm_rules(settings: Mapping[str, Any]) -> dict[str, _Rule]:
    """The rules of model_args of timm's VisionTransformer, or of its class Eva."""
    if "rotation" not in settings:
        return _TIMM
    return _TIMM | {name: _Rule(*rule) for name, rule in EVA_ARGUMENTS.items()}


def _kind(settings: Mapping[str, Any]) -> str:
    kind = str(settings.get("model_type", ""))
    return MODEL_TYPES.get(kind, kind)


def check_types(where: str, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError with every setting of the wrong JSON type."""
    problems = []
    for name, rule, said in _said(settings):
        if said is not None and not _TYPES[rule.json](said):
            problems.append(f"{name}={said!r}: must be {rule.json}")
    args = settings.get("model_args") or {} if "architecture" in settings else {}
    known = {*_timm_rules(settings), *_TIMM_TRAINING}
    for name, value in args.items():
        if name not in known and value is not None:
            problems.append(f"model_args.{name}={value!r}: not supported")
    if problems:
        raise CheckpointError(f"{where}: config.json cannot be used: " + "; ".join(problems))


def check_agreement(where: str, settings: Mapping[str, Any], model: Model, hints: Hints) -> None:
    """Raises CheckpointError with every setting of config.json that disagrees with `model`.

    `model` is inferred from the tensors. Settings that hints override are not compared.
    """
    problems = []
    hinted = {"num_attention_heads", "num_heads", "head_width"} if hints.num_heads is not None else set()
    hinted |= {"global_pool", "pool_type"} if hints.pooling is not None else set()
    for name, rule, said in _said(settings):
        is_told = said is not None or name.endswith(("init_values", "ls_init_value"))  # None: no LayerScale
        if not is_told or rule.have is None or name.split(".")[-1] in hinted:
            continue
        have = rule.have(model, said)
        if (list(said) if isinstance(said, tuple) else said) != have:
            problems.append(f"{name} is {said!r} in config.json, and {have!r} in the tensors")
    labels, classes = settings.get("id2label"), model.num_classes
    if labels and classes and _kind(settings) != "clip" and len(labels) != classes:
        problems.append(f"id2label has {len(labels)} classes in config.json, and {classes} in the tensors")
    if settings.get("model_type") == "dinov2" and model.num_registers:
        registers = f"{model.num_registers} registers in the tensors"
        problems.append(f"model_type is 'dinov2', without registers, in config.json, and {registers}")
    tokens = [settings.get(name) for name in ("num_cls_tokens", "num_registers")]  # of RADIO
    counts = [count for count in tokens if isinstance(count, int)]
    if len(counts) == 2 and sum(counts) != model.num_registers + 1:
        problems.append(
            f"{sum(counts)} cls and registers in config.json, {model.num_registers + 1} in the tensors"
        )
    if settings.get("model_type") == "deit" and not model.num_registers:
        problems.append("model_type is 'deit' in config.json, and no distillation token is in the tensors")
    if problems:
        raise CheckpointError(f"{where} disagrees with the config.json beside it: " + "; ".join(problems))
