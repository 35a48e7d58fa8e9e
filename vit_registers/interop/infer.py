"""Infers the Model of a checkpoint from tensor shapes, config.json and the user's hints."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from vit_registers.config import Model, lookup
from vit_registers.errors import CheckpointError
from vit_registers.interop import dinov3
from vit_registers.interop.eva import positions_text
from vit_registers.interop.hints import HIDDEN_ACTS
from vit_registers.interop.names.dinov2_timm_clip import TorchNames
from vit_registers.interop.recognize import RecognizedWeights

# Heads of the published models by width, for checkpoints without config.json.
_NUM_HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
_NUM_HEADS |= {256: 4, 320: 5, 640: 10, 832: 13, 896: 14}  # widths of timm's models
_NUM_HEADS_1536 = {"swiglu": 24, "mlp": 16}  # DINOv2's g, big_vision's g-opt

# Settings that shapes do not determine, by family; those that are absent have the defaults of Model.
FAMILIES: dict[str, dict[str, Any]] = {
    "dinov2": {"init": "dinov2", "position_resampling": "bicubic_offset"},  # bicubic_aa with registers
    "deit": {"init": "deit3", "position_resampling": "bicubic"},
    "dino": {"init": "deit3", "position_resampling": "bicubic_offset"},
    "clip": {"init": "dinov2", "norm_eps": 1e-5, "activation": "quick_gelu"},
    "open_clip": {"init": "dinov2", "norm_eps": 1e-5},
    "timm": {"init": "dinov2"},
    "timm/eva": {"init": "dinov2"},
    "timm/rope": {"init": "dinov2"},  # the same models, written
    "dinov3": {"init": "dinov2", "norm_eps": 1e-5},
    "eva02": {"init": "dinov2", "position_resampling": "bicubic"},
    "radio": {"init": "dinov2", "position_resampling": "bilinear_crop"},
    "pe": {"init": "dinov2", "norm_eps": 1e-5, "position_resampling": "bilinear"},
    "big_vision": {"activation": "gelu_tanh", "position_resampling": "linear"},
    "mup_vit": {},
    "transformers/dinov2": {"init": "dinov2", "position_resampling": "bicubic"},  # as above
    "transformers/dinov3": {"init": "dinov2", "norm_eps": 1e-5},
    "transformers/vit": {"init": "dinov2", "norm_eps": 1e-12, "position_resampling": "bicubic"},
    "transformers/deit": {"init": "deit3", "norm_eps": 1e-12, "position_resampling": "bicubic"},
    "transformers/clip": {
        "init": "dinov2",
        "norm_eps": 1e-5,
        "activation": None,  # quick or exact: from config.json
        "position_resampling": "bicubic",
    },
    "transformers/siglip": {"activation": "gelu_tanh", "position_resampling": "bicubic"},
}


def infer_model(names: TorchNames, found: RecognizedWeights) -> Model:
    """The Model of a torch family, at the image size of its position table.

    Raises CheckpointError if neither shapes nor config.json nor hints determine a setting.
    """
    shapes, where = found.weights.shapes, found.weights.where
    width, channels, patch_size, patch_columns = shapes[names.patch.format("weight")]
    if patch_size != patch_columns:
        raise CheckpointError(
            f"{where}: patches of {patch_size} x {patch_columns} px: only square ones are supported"
        )
    use_cls = names.cls in shapes
    num_registers = shapes.get(names.registers or "", (0, 0))[-2]
    block = names.block.format(0)
    mlp, mlp_dim = mlp_sizes(names, found, block)
    rows, grid = _positions(names, found, patch_size, use_cls=use_cls, num_registers=num_registers)
    has_layer_scale = names.layer_scale is not None and block + names.layer_scale[0] in shapes
    model = Model(
        width=width,
        depth=count_blocks(names.block, shapes),
        mlp=mlp,
        mlp_dim=mlp_dim,
        num_heads=num_heads(width, mlp, found),
        channels=channels,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        use_cls=use_cls,
        num_registers=num_registers,
        has_cls_position=rows > 0,
        extra_positions="learned" if rows > use_cls else "none",
        use_mask_token=names.mask_token in shapes,
        layer_scale_init=1e-5 if has_layer_scale else None,
        use_qkv_bias=block + (names.qv_bias or names.qkv)[0].format("bias") in shapes,
        use_attention_norm=_has_norm(names.attention_norm, block, shapes),
        use_mlp_norm=_has_norm(names.mlp_norm, block, shapes),
        use_final_norm=_has_norm(names.norm, "", shapes) or _has_norm(names.norm_after_pool, "", shapes),
        positions=positions_text(found.settings.get("rotation", {}), has_table=names.positions in shapes),
        use_patch_bias=names.patch.format("bias") in shapes,
        use_norm_pre=names.norm_pre is not None and names.norm_pre.format("weight") in shapes,
        **_pooling(names, found),
        **_head(names, shapes),
    )
    return with_family_settings(model, found)


def _is_dinov3(found: RecognizedWeights) -> bool:
    rotation = found.settings.get("rotation")
    return bool(rotation) and rotation.get("coordinates", "centres") == "centres"


def _has_norm(name: str | None, block: str, shapes: Mapping[str, Any]) -> bool:
    return name is not None and block + name.format("weight") in shapes


def mlp_sizes(names: TorchNames, found: RecognizedWeights, block: str) -> tuple[str, int]:
    """(the kind of MLP, its hidden size) of the block whose names begin with `block`."""
    shapes = found.weights.shapes
    first, gate = block + names.fc1.format("weight"), block + names.w12[0].format("weight")
    second = block + names.fc2.format("weight")
    if first in shapes and first != gate:
        return "mlp", shapes[first][0]
    if gate not in shapes:
        raise CheckpointError(f"{found.weights.where}: '{found.in_file(first)}' is missing")
    hidden = shapes[gate][0]
    if first == gate and second in shapes and shapes[second][1] == hidden:
        return "mlp", hidden  # timm has the same names for both
    return "swiglu", hidden // 2 if len(names.w12) == 1 else hidden


def with_family_settings(model: Model, found: RecognizedWeights) -> Model:
    """The model with the settings of its family, overridden by config.json, overridden by the hints."""
    settings, hints, names = found.settings, found.hints, found.names
    values = dict(FAMILIES[found.family])
    has_registers = isinstance(names, TorchNames) and names.registers in found.weights.shapes  # of any number
    if has_registers and "dinov2" in (found.source, found.kind):
        values["position_resampling"] = "bicubic_aa"
    if found.source == "timm" and model.use_norm_pre:  # image towers of CLIP, and Perception Encoders
        values |= {"norm_eps": 1e-5} | ({"activation": None} if found.kind is None else {})
    if found.family == "timm" and model.use_attention_norm:
        values["norm_eps"] = 1e-5  # BEiT-3
    if found.kind == "eva" and _is_dinov3(found):
        values["norm_eps"] = 1e-5
    if "layer_norm_eps" in settings:
        values["norm_eps"] = float(settings["layer_norm_eps"])
    act = hints.hidden_act or settings.get("hidden_act")
    if act is None and "model_cfg" in settings:
        act = "quick_gelu" if settings["model_cfg"].get("quick_gelu") else "gelu"
    if act is None and "architecture" in settings:
        act = "gelu"
    if act == "silu" and model.mlp == "swiglu":
        act = "gelu"  # of the gate, the only one
    if act is not None:
        values["activation"] = lookup(HIDDEN_ACTS, act, f"{found.weights.where}: hidden_act")
    elif values.get("activation", "gelu") is None:
        raise CheckpointError(
            f"{found.weights.where} is a CLIP image tower, and its tensors do not determine its GELU: "
            "give hidden_act ('quick_gelu' for OpenAI's, 'gelu' for most of open_clip's)"
        )
    if hints.interpolation is not None:
        values["position_resampling"] = hints.interpolation
    return dataclasses.replace(model, **values)


def count_blocks(template: str, shapes: Mapping[str, Any]) -> int:
    """The number of blocks: one more than the largest number in a name."""
    pattern = re.escape(template).replace(r"\{\}", r"(\d+)")
    numbers = [int(match.group(1)) for name in shapes if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def num_heads(width: int, mlp: str, found: RecognizedWeights) -> int:
    """The number of heads: from the hints, config.json, or published models of this width."""
    settings, hints = found.settings, found.hints
    if hints.num_heads is not None:
        return hints.num_heads
    if "num_attention_heads" in settings:
        return settings["num_attention_heads"]
    if "model_cfg" in settings:
        return max(1, width // settings["model_cfg"]["vision_cfg"].get("head_width", 64))
    if _is_dinov3(found) and width >= 64:
        return dinov3.published_num_heads(width)
    count = _NUM_HEADS_1536[mlp] if width == 1536 else _NUM_HEADS.get(width)
    norms = {"norm.weight", "fc_norm.weight"} & set(found.weights.shapes)
    if width == 1536 and (found.source == "radio" or (found.family == "timm" and not norms)):
        count = 24  # RADIO of timm, whose other ViTs have a norm after the blocks
    if count is None:
        raise CheckpointError(
            f"{found.weights.where}: the number of heads is not in the tensors, and no published model has "
            f"width {width}: give num_heads"
        )
    return count


def _sides(image_size: Any) -> tuple[int, int]:
    """(height, width) of one number for a square, or of two."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def native_grid(cells: int, patch_size: int, image_size: Any) -> tuple[int, int] | None:
    """The grid of a table of that many cells: that of `image_size` if it fits, else a square, else None."""
    if image_size is not None:
        height, width = _sides(image_size)
        grid = (height // patch_size, width // patch_size)
        if math.prod(grid) == cells and grid != (0, 0):
            return grid
    side = math.isqrt(cells) if cells > 0 else 0
    return (side, side) if side and side * side == cells else None


def _positions(
    names: TorchNames, found: RecognizedWeights, patch_size: int, *, use_cls: bool, num_registers: int
) -> tuple[int, tuple[int, int]]:
    shapes, where = found.weights.shapes, found.weights.where
    image_size = found.settings.get("image_size")
    if names.positions not in shapes and found.settings.get("rotation"):
        side = max(224 // patch_size, 1) * patch_size  # rotations fit images of every size
        height, width = _sides(image_size or side)
        return 0, (height // patch_size, width // patch_size)
    if names.positions not in shapes:
        raise CheckpointError(
            f"{where}: '{names.positions}' is missing: there is no position table, and relative positions "
            "are not supported yet"
        )
    total = math.prod(shapes[names.positions][:-1])
    if found.source == "timm" or found.source == "deit":
        options = [use_cls + num_registers, int(use_cls), 0]
    elif names.registers is not None and ("dist" in names.registers):
        options = [use_cls + num_registers]
    else:
        options = [int(use_cls)]
    options = sorted(set(options), reverse=True)
    # A table that is not square belongs to the size in the settings, or else to the size that the user gives.
    grids = {
        rows: native_grid(total - rows, patch_size, image_size)
        or native_grid(total - rows, patch_size, found.hints.image_size)
        for rows in options
    }
    fitting = {rows: grid for rows, grid in grids.items() if grid is not None}
    if len(fitting) > 1 and image_size is not None:
        trained = tuple(side // patch_size for side in _sides(image_size))
        fitting = {rows: grid for rows, grid in fitting.items() if grid == trained} or fitting
    if not fitting:
        raise CheckpointError(
            f"{where}: '{names.positions}' has {total} rows, which is not a square grid (with "
            f"cls: {use_cls}, registers: {num_registers}): give image_size, the size that it was trained at"
        )
    if len(fitting) > 1:
        raise CheckpointError(
            f"{where}: '{names.positions}' has {total} rows, and the patches may have any of "
            f"{list(fitting.values())}: give image_size, the size that it was trained at, or none if the "
            "patches are a square"
        )
    return next(iter(fitting.items()))


def _pooling(names: TorchNames, found: RecognizedWeights) -> dict[str, Any]:
    shapes, settings = found.weights.shapes, found.settings
    use_cls = names.cls in shapes
    is_after = (
        names.norm_after_pool is not None
        and names.norm_after_pool.format("weight") in shapes
        and (names.norm_after_pool == names.norm or names.norm.format("weight") not in shapes)
        and settings.get("is_norm_after_pool", True)
    )
    pooling = "cls" if use_cls else "gap"
    if found.family in ("timm/eva", "pe") and not _has_norm(names.norm, "", shapes):
        pooling = "gap"  # Perception Encoders without pooling and norm, whose patches are of use
    if names.attn_pool is not None and names.attn_pool.probe in shapes:
        pooling = "map"
    elif is_after and names.norm_after_pool != names.norm:  # timm has fc_norm with average pooling by default
        pooling = "cls" if use_cls and settings.get("global_pool") == "token" else "gap"
    elif settings.get("global_pool") == "avg":
        pooling = "gap"  # timm without fc_norm
    elif names.head is not None and len(names.head) == 2 and names.head[1].format("weight") in shapes:
        pooling = "cls_registers"
    elif names.head is not None and names.head[0].format("weight") in shapes:
        width = shapes[names.norm.format("weight")][0] if names.norm.format("weight") in shapes else 0
        if shapes[names.head[0].format("weight")][1] == 2 * width:
            pooling = "cls_gap"  # transformers' Dinov2ForImageClassification
    pooling = found.hints.pooling or pooling
    sizes = _pool_sizes(names, found) if pooling == "map" else {}
    return {"pooling": pooling, "use_norm_after_pool": is_after} | sizes


def _pool_sizes(names: TorchNames, found: RecognizedWeights) -> dict[str, Any]:
    """The settings of attention pooling: Perception Encoders have 8 heads there, others those of blocks."""
    shapes, settings = found.weights.shapes, found.settings
    if found.family not in ("timm/eva", "pe") or names.attn_pool is None:
        return {"pool_tokens": "all" if settings.get("pool_include_prefix") else "patches"}
    _, hidden = mlp_sizes(names, found, names.block.format(0))
    own = shapes[names.attn_pool.fc1.format("weight")][0]
    has_more = names.cls in shapes or (names.registers or "") in shapes
    is_pe = "architecture" not in settings and _has_norm(names.norm_pre, "", shapes)
    return {
        "pool_tokens": "all" if has_more else "patches",
        "pool_num_heads": settings.get("pool_num_heads", 8 if is_pe else None),
        "pool_mlp_dim": None if own == hidden else own,
    }


def _head(names: TorchNames, shapes: Mapping[str, Any]) -> dict[str, Any]:
    if names.projection is not None and (name := names.projection.format("weight")) in shapes:
        is_ours = "{}" not in names.projection
        return {"num_classes": shapes[name][1 if is_ours else 0], "use_head_bias": False}
    if names.head is None or (name := names.head[0].format("weight")) not in shapes:
        return {"num_classes": 0}
    use_pre_logits = names.pre_logits is not None and names.pre_logits.format("weight") in shapes
    return {"num_classes": shapes[name][0], "use_pre_logits": use_pre_logits}
