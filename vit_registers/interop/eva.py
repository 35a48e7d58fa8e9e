"""The rotation of queries and keys in timm's class Eva, in EVA-02's and in the Perception Encoder's code.

No tensor holds it, except learned frequencies and the tables of EVA-02's code. It follows from timm's name of
the architecture, from config.json, or from layers that only one published family has.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.models.positions import canonical_positions, position_rule

_Shapes = Mapping[str, tuple[int, ...]]
_Arguments = dict[str, Any]  # of models.rotary.rope2d

_INDEX = {"base": 10_000.0, "coordinates": "index", "pairs": "interleaved"}
_EVA02 = _INDEX | {"reference": 16}
_AXIAL = _INDEX | {"base": 100.0, "order": "xy"}
_DINOV3 = {"base": 100.0, "coordinates": "centres", "pairs": "half"}
_MIXED = _INDEX | {"base": 10.0, "order": "xy", "learned": True}

# timm's architectures of the class Eva that are supported -> arguments of the rotation; {}: there is none.
_ARCHITECTURES: dict[str, _Arguments] = {
    r"eva_giant_patch14_.*": {},
    r"eva02_(tiny|small|base|large)_patch\d+_.*|vit_\w+_rope_reg\d_gap_\d+": _EVA02,
    r"vit_pe_(core|lang|spatial)_.*": _INDEX | {"order": "xy"},
    r"vit_\w+_rope_mixed_(ape_)?\d+": _MIXED,
    r"vit_\w+_rope_(ape_)?\d+": _AXIAL,
    r"vit_\w+_patch\d+_(dinov3(_qkvb)?|lingbot)": _DINOV3,
}
DINOV3_ASSUMED = "the rotary positions of DINOv3 and timm's pooling of it, the mean of patches, are assumed"
_PE = re.compile(r"vit_pe_\w+?_patch(\d+)_(\d+)")

# timm's arguments -> arguments of the rotation, and their values.
_TIMM: dict[str, tuple[str, Mapping[Any, Any] | None]] = {
    "rope_temperature": ("base", None),
    "rope_grid_offset": ("offset", None),
    "rope_grid_indexing": ("order", {"ij": "yx", "xy": "xy"}),
    "rope_rotate_half": ("pairs", {False: "interleaved", True: "half"}),
    "rope_type": ("learned", {"cat": False, "mixed": True, "dinov3": False}),
    "rope_shift_coords": ("shift", None),
    "rope_jitter_coords": ("jitter", None),
    "rope_rescale_coords": ("rescale", None),
}


_Check = tuple[str, Callable[[Model, Any], Any] | None]  # as agreement._Rule


def _mlp_ratio(model: Model, said: float) -> float:
    width, hidden = model.width or 1, model.mlp_dim or 1
    return said if int(width * said) == hidden else hidden / width


def _has_table(model: Model) -> bool:
    return position_rule(model.positions).is_learned


# Arguments of the class Eva: the JSON type, and the value that the tensors imply; others are those of timm's
# VisionTransformer. Those of the rotation are read by timm_rotation.
EVA_ARGUMENTS: dict[str, _Check] = {
    "mlp_ratio": ("a positive number", _mlp_ratio),
    "num_reg_tokens": ("an integer", lambda m, _: m.num_registers),
    "no_embed_class": (
        "true or false",
        lambda m, said: not m.has_cls_position and m.extra_positions == "none" if _has_table(m) else said,
    ),
    "swiglu_mlp": ("true or false", lambda m, _: m.mlp == "swiglu"),
    "scale_mlp": ("true or false", lambda m, _: m.use_mlp_norm),
    "scale_attn_inner": ("true or false", lambda m, _: m.use_attention_norm),
    "use_abs_pos_emb": ("true or false", lambda m, _: _has_table(m)),
    "use_rot_pos_emb": ("true or false", None),
    "use_pre_transformer_norm": ("true or false", lambda m, _: m.use_norm_pre),
    "use_post_transformer_norm": (
        "true or false",
        lambda m, _: m.use_final_norm and not m.use_norm_after_pool,
    ),
    "use_fc_norm": ("true or false", lambda m, _: m.use_norm_after_pool),
    "use_post_norm": ("true or false", lambda m, _: False),
    "attn_only_layer_scale": ("true or false", lambda m, _: False),
    "qkv_fused": ("true or false", None),
    "attn_type": ("a string", None),
    "attn_pool_num_heads": ("a positive integer", lambda m, said: m.pool_num_heads or said),
    "attn_pool_mlp_ratio": ("a positive number", None),
    "swiglu_align_to": ("an integer", None),
    "rope_type": ("a string", None),
    "rope_grid_indexing": ("a string", None),
    "rope_rotate_half": ("true or false", None),
    **dict.fromkeys(("rope_temperature", "rope_grid_offset"), ("a number", None)),
    **dict.fromkeys(("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"), ("a number", None)),
    "ref_feat_shape": ("a positive integer or two", None),
}


def is_eva_architecture(name: str) -> bool:
    """Whether `name` is one of timm's architectures of the class Eva that are supported."""
    return _known(name.split(".")[0]) is not None


def is_timm_dinov3(architecture: str) -> bool:
    """Whether an architecture of timm is DINOv3: it pools the mean of the patches without fc_norm."""
    return bool(re.fullmatch(r".*_dinov3(_qkvb)?", architecture.split(".")[0]))


def _known(name: str) -> _Arguments | None:
    return next((known for pattern, known in _ARCHITECTURES.items() if re.fullmatch(pattern, name)), None)


def timm_rotation(architecture: str, args: Mapping[str, Any]) -> _Arguments | None:
    """The arguments of the rotation of an architecture of timm with the model arguments `args`.

    {} for none, and None for other classes than Eva. Raises CheckpointError for what this project lacks.
    """
    name = architecture.split(".")[0]
    known = _known(name)
    if known is None:
        return None
    arguments = dict(known)
    if sizes := _PE.fullmatch(name):
        patch, side = map(int, sizes.groups())
        arguments |= {"reference": side // patch} | ({} if "_gigantic_" in name else {"offset": 1.0})
    for theirs, (ours, values) in _TIMM.items():
        said = args.get(theirs)
        if said is None:
            continue
        if values is not None and said not in values:
            raise CheckpointError(f"config.json: model_args.{theirs}={said!r} is not supported")
        arguments[ours] = said if values is None else values[said]
    if kind := args.get("rope_type"):
        arguments["coordinates"] = "centres" if kind == "dinov3" else "index"
    if "ref_feat_shape" in args:
        arguments["reference"] = _reference(args["ref_feat_shape"])
    if not args.get("use_rot_pos_emb", bool(known)):
        return {}
    ignored = {"reference", "offset"} if arguments.get("learned") else set()  # as timm does
    ignored |= {"reference"} if arguments.get("coordinates") == "centres" else set()
    arguments = {name: value for name, value in arguments.items() if name not in ignored}
    return _INDEX | {name: value for name, value in arguments.items() if value not in (0, False)}


def _reference(shape: Any) -> int:
    sides = shape if isinstance(shape, list | tuple) else [shape or 0] * 2
    if len(set(sides)) != 1 or type(sides[0]) is not int:
        raise CheckpointError(f"config.json: model_args.ref_feat_shape={shape!r}: must be a square grid")
    return sides[0]


def guess_rotation(where: str, shapes: _Shapes) -> tuple[_Arguments, str]:
    """(The arguments of the rotation, a note) of tensors of timm's class Eva without config.json.

    Raises CheckpointError if the layers are those of several published families.
    """
    is_swiglu = "blocks.0.mlp.fc1_g.weight" in shapes or _is_packed(shapes)
    has_scale, has_table = "blocks.0.gamma_1" in shapes, "pos_embed" in shapes
    if "rope.freqs" in shapes:
        return _MIXED, ""
    if "norm_pre.weight" in shapes and has_table:
        cls = int("cls_token" in shapes)
        side = round((shapes["pos_embed"][1] - cls) ** 0.5)
        arguments = _INDEX | {"order": "xy", "reference": side} | ({"offset": 1.0} if cls else {})
        return arguments, "the rotary positions of timm's Perception Encoders are assumed"
    if is_swiglu and has_table and not has_scale:
        return _EVA02, "the rotary positions of EVA-02 are assumed"
    if not has_table and has_scale and "cls_token" in shapes and "reg_token" in shapes:
        return _DINOV3, f"{DINOV3_ASSUMED}: pooling='cls' for LingBot-Vision"
    if not has_table and has_scale and not is_swiglu:
        if "reg_token" in shapes and "cls_token" not in shapes:
            return _EVA02, "the rotary positions of timm's vit_*_rope_reg* are assumed"
        if "blocks.0.attn.qkv.bias" in shapes and "cls_token" in shapes and "reg_token" not in shapes:
            return _AXIAL, "the rotary positions of timm's vit_*_rope_* are assumed"
    raise CheckpointError(
        f"{where} is of timm's class Eva, whose rotary positions are in no tensor: give architecture, timm's "
        "name of the model"
    )


def _is_packed(shapes: _Shapes) -> bool:
    first, last = (shapes.get(f"blocks.0.mlp.{name}.weight", (0, 0)) for name in ("fc1", "fc2"))
    return first[0] == 2 * last[1] > 0


def original_rotation(source: str, names: Collection[str]) -> _Arguments:
    """The arguments of the rotation in the code of Perception Encoders ("pe") and of EVA-02 ("eva02")."""
    if source == "eva02":
        return _EVA02
    return _INDEX | {"order": "xy"} | ({"offset": 1.0} if "class_embedding" in names else {})


def positions_text(arguments: _Arguments, *, has_table: bool) -> str:
    """model.positions of a rotation with those arguments, beside a table of learned positions or alone."""
    parts = ["learned"] if has_table else []
    if arguments:
        parts.append(f"rope2d({', '.join(f'{name}={value!r}' for name, value in arguments.items())})")
    return canonical_positions(" + ".join(parts) or "none")
