"""The settings of a text tower: from the tensors, from the config of their library, and from the user."""

from collections.abc import Callable, Mapping
from typing import Any

from vit_registers.config import Text, lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop.hints import HIDDEN_ACTS
from vit_registers.interop.infer import count_blocks
from vit_registers.interop.names.dinov2_timm_clip import BigVisionNames
from vit_registers.interop.names.text import TextNames

Shapes = Mapping[str, tuple[int, ...]]

# Settings of text_config (transformers) and text_cfg (open_clip) -> settings of Text.
_TRANSFORMERS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context",
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_dim",
    "layer_norm_eps": "norm_eps",
    "hidden_act": "activation",
}
_OPEN_CLIP = {
    "vocab_size": "vocab_size",
    "context_length": "context",
    "width": "width",
    "layers": "depth",
    "heads": "num_heads",
    "proj_bias": "has_projection_bias",
}
# Settings of text_cfg that change the layers or the pooling -> the values that this project has.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "embed_cls": (False,),
    "hf_model_name": (None,),
    "ls_init_value": (None,),
    "pool_type": ("argmax", "eos", "last"),
    "proj_type": ("linear",),
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
        (False,),
    ),
}
_DEFAULTS = {  # of transformers and open_clip, for settings that a config.json leaves out
    "clip": {"num_heads": 8, "activation": "quick_gelu", "norm_eps": 1e-5},
    "siglip": {"num_heads": 12, "activation": "gelu_pytorch_tanh", "norm_eps": 1e-6},
    "open_clip": {"num_heads": 8, "has_projection_bias": False},
}
_CLIP = {"is_causal": True, "pool": "end"}
_SIGLIP = {"is_causal": False, "pool": "last", "has_projection_bias": True}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "activation": ("a string", lambda value: isinstance(value, str)),
    "has_projection_bias": ("true or false", lambda value: isinstance(value, bool)),
    "norm_eps": ("a positive number", lambda value: type(value) in (int, float) and value > 0),
}
_COUNT = "a positive integer", _is_count
# Of text_cfg, besides those of _OPEN_CLIP.
_OPEN_CLIP_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mlp_ratio": ("a positive number", lambda value: type(value) in (int, float) and 0 < value < 1000),
    "no_causal_mask": _TYPES["has_projection_bias"],
    "eos_id": ("an id", lambda value: type(value) is int),
    "act_kwargs": ("an object", lambda value: isinstance(value, Mapping)),
    "norm_kwargs": (
        "an object, with eps as a positive number",
        lambda value: isinstance(value, Mapping) and _TYPES["norm_eps"][1](value.get("eps", 1.0)),
    ),
}


def told_text(whole: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the config of a whole model says about its text tower, as settings of Text; {} without one.

    `whole` is the content of the config.json or open_clip_config.json. Raises CheckpointError for wrong types
    and for layers that this project lacks.
    """
    if not whole:
        return {}
    is_open_clip = "model_cfg" in whole
    if is_open_clip:
        parts = [("text_cfg", whole["model_cfg"].get("text_cfg"))]
    else:  # openai/* have the first; where it is, transformers ignores the second
        parts = [(name, whole.get(name)) for name in ("text_config_dict", "text_config")]
    name, section = next((part for part in parts if part[1] is not None), parts[-1])
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{where}: the config.json beside it has no {name}: it is of no text tower")
    section = {key: value for key, value in section.items() if value is not None}
    table = _OPEN_CLIP if is_open_clip else _TRANSFORMERS
    said = {table[key]: value for key, value in section.items() if key in table}
    types = {key: _TYPES.get(ours, _COUNT) for key, ours in table.items()}
    types |= _OPEN_CLIP_TYPES if is_open_clip else {}
    problems = [
        f"{name}.{key}={section[key]!r}: must be {what}"
        for key, (what, is_valid) in types.items()
        if key in section and not is_valid(section[key])
    ]
    if problems:
        raise CheckpointError(f"{where}: config.json cannot be used: " + "; ".join(problems))
    if is_open_clip:
        return _DEFAULTS["open_clip"] | said | _told_by_open_clip(whole["model_cfg"], section, where)
    kind = "siglip" if str(whole.get("model_type")).startswith("siglip") else "clip"
    said = _DEFAULTS[kind] | said
    if kind == "siglip":
        size = section.get("projection_size")
        return said | _SIGLIP | ({} if size is None else {"embed_dim": size})
    end = section.get("eos_token_id", 49_407)
    if not isinstance(end, int) or isinstance(end, bool):
        raise CheckpointError(f"{where}: text_config.eos_token_id={end!r}: must be one integer")
    # CLIP has 2 in configs from before transformers knew the end token, and pools the largest id then.
    is_legacy = end == 2 and not str(whole.get("model_type")).startswith("metaclip")
    said["end_token"] = None if is_legacy else end
    return said | _CLIP | ({"embed_dim": whole["projection_dim"]} if "projection_dim" in whole else {})


def _told_by_open_clip(config: Mapping[str, Any], section: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name, values in _SUPPORTED.items():
        if name in section and section[name] not in values:
            raise CheckpointError(f"{where}: text_cfg.{name}={section[name]!r} is not supported yet")
    pool = section.get("pool_type", "argmax")
    is_tanh = (section.get("act_kwargs") or {}).get("approximate") == "tanh"
    said = {
        "is_causal": not section.get("no_causal_mask", False),
        "pool": "last" if pool == "last" else "end",
        "end_token": section.get("eos_id", 2) if pool == "eos" else None,
        "activation": "quick_gelu" if config.get("quick_gelu") else "gelu_tanh" if is_tanh else "gelu",
        "norm_eps": (section.get("norm_kwargs") or {}).get("eps", 1e-5),
    }
    if "embed_dim" in config:
        said["embed_dim"] = config["embed_dim"]
    if "width" in section:
        said["mlp_dim"] = int(section["width"] * section.get("mlp_ratio", 4.0))
    return said


def infer_text(
    names: TextNames,
    shapes: Shapes,
    said: Mapping[str, Any],
    *,
    usual: Mapping[str, Any],
    given: Mapping[str, Any],
    where: str,
) -> Text:
    """The Text of tensors. `said` is told_text, `usual` are settings where nothing says another.

    `given` are settings of the user, which override the others; None is not given. Raises CheckpointError if
    nothing determines a setting, and with all settings of config.json that disagree with the tensors.
    """
    tensors = _from_tensors(names, shapes, where)
    problems = [
        f"{name} of the text tower is {said[name]!r} in config.json, and {value!r} in the tensors"
        for name, value in tensors.items()
        if name in said and said[name] != value
    ]
    if problems:
        raise CheckpointError(f"{where} disagrees with the config.json beside it: " + "; ".join(problems))
    values = {**usual, **(_SIGLIP if names.is_siglip else _CLIP), **said, **tensors}
    values |= {name: value for name, value in given.items() if value is not None}
    values["activation"] = lookup(HIDDEN_ACTS, values["activation"], f"{where}: hidden_act")
    width = values["width"]
    if "num_heads" not in values:
        values["num_heads"] = 16 if width == 1152 else width // 64 if width % 64 == 0 else None
    if values["num_heads"] is None or width % values["num_heads"]:
        raise CheckpointError(
            f"{where}: the number of heads of the text tower, of width {width}, "
            + ("is not in the tensors" if values["num_heads"] is None else f"cannot be {values['num_heads']}")
            + ": give text_num_heads"
        )
    if values.get("end_token") is not None and not 0 <= values["end_token"] < values["vocab_size"]:
        raise CheckpointError(
            f"{where}: the end token of the text tower is {values['end_token']} in config.json, and the "
            f"vocabulary has {values['vocab_size']} ids: put eos_token_id right (2: the largest id of a text)"
        )
    return Text(**values, init="big_vision" if names.is_siglip else "open_clip")


def _from_tensors(names: TextNames, shapes: Shapes, where: str) -> dict[str, Any]:
    layers = names.layers
    if isinstance(layers, BigVisionNames):
        block = f"{layers.encoder}/encoderblock" + ("" if layers.is_scanned else "_0")
        first, query = f"{block}/{layers.mlp}/Dense_0/kernel", f"{block}/{layers.attention}/query/kernel"
        projection, inputs_axis, bias = f"{names.projection}/kernel", 0, f"{names.projection}/bias"
        depth = count_blocks(f"{layers.encoder}/encoderblock_{{}}/", shapes)
    else:
        first, query = layers.block.format(0) + layers.fc1.format("weight"), None
        projection = names.projection.format("weight")
        inputs_axis, bias = int("{}" in names.projection), names.projection.format("bias")
        depth = count_blocks(layers.block, shapes)
    lead = int(isinstance(layers, BigVisionNames) and layers.is_scanned)
    needed = {names.tokens: 2, names.positions: names.position_axes, first: 2 + lead, projection: 2}
    needed |= {} if query is None else {query: 3 + lead}
    for name, axes in needed.items():
        if name not in shapes:
            raise CheckpointError(f"{where}: '{name}' of the text tower is missing")
        if len(shapes[name]) != axes or 0 in shapes[name]:
            raise CheckpointError(
                f"{where}: '{name}' of the text tower is {shapes[name]}: must have {axes} axes, none empty"
            )
    (vocab_size, width), is_layer = shapes[names.tokens], bias != projection
    found: dict[str, Any] = {
        "vocab_size": vocab_size,
        "width": width,
        "context": shapes[names.positions][-2],
        "depth": depth,
        "mlp_dim": shapes[first][0 if query is None else -1],
        "embed_dim": shapes[projection][1 - inputs_axis],
        "has_projection_bias": is_layer and bias in shapes,
    }
    if isinstance(layers, BigVisionNames):
        assert query is not None
        found["num_heads"] = shapes[query][-2]
        found["depth"] = shapes[query][0] if layers.is_scanned else depth
    return found


def text_line(text: Text) -> str:
    """The text tower in a line."""
    parts = [
        f"text tower of width {text.width}, depth {text.depth}, {text.num_heads} heads, mlp {text.mlp_dim}",
        f"{text.vocab_size} token ids, texts of {text.context}",
        "causal" if text.is_causal else "not causal",
        "pooled at the last token" if text.pool == "last" else "pooled at the end token",
        f"{text.activation}, norm eps {text.norm_eps:g}",
        f"embeddings of {text.embed_dim}",
    ]
    return ", ".join(parts)
