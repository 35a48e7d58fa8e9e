"""big_vision's parameter names. Axes have the order of this project; q, k and v are separate.

Three layouts: the current one, that of the original ViT and augreg files, and the current one with the blocks
stacked along a leading axis (scan).
"""

import dataclasses

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.infer import count_blocks, native_grid, with_family_settings
from vit_registers.interop.names.dinov2_timm_clip import BIG_VISION_ORIGINAL, BigVisionNames
from vit_registers.interop.recognize import RecognizedWeights
from vit_registers.interop.tensor_map import TensorRule, joined, same, scanned, sliced
from vit_registers.models.blocks import dims
from vit_registers.models.paths import Leaf


def _layer(leaf: Leaf, name: str, parts: tuple[str, str]) -> list[TensorRule]:
    return [same((*leaf, part), f"{name}/{part}") for part in parts]


def big_vision_dense(leaf: Leaf, name: str) -> list[TensorRule]:
    """The rules of a dense layer."""
    return _layer(leaf, name, ("kernel", "bias"))


def _joint(leaf: Leaf, name: str, parts: tuple[str, ...]) -> list[TensorRule]:
    """Separate projections that are one leaf; they are stacked along the first axis of the outputs."""
    return [
        sliced((*leaf, "kernel"), tuple(f"{name}/{part}/kernel" for part in parts), axis=1),
        sliced((*leaf, "bias"), tuple(f"{name}/{part}/bias" for part in parts), axis=0),
    ]


def _block(style: BigVisionNames, i: int) -> list[TensorRule]:
    leaf: Leaf = ("blocks", i)
    name = f"{style.encoder}/encoderblock" + ("" if style.is_scanned else f"_{i}")
    attention = f"{name}/{style.attention}"
    return [
        *_layer((*leaf, "norm1"), f"{name}/LayerNorm_0", ("scale", "bias")),
        *_joint((*leaf, "attn", "qkv"), attention, ("query", "key", "value")),
        *big_vision_dense((*leaf, "attn", "out"), f"{attention}/out"),
        *_layer((*leaf, "norm2"), f"{name}/{style.norm2}", ("scale", "bias")),
        *big_vision_dense((*leaf, "mlp", "fc1"), f"{name}/{style.mlp}/Dense_0"),
        *big_vision_dense((*leaf, "mlp", "fc2"), f"{name}/{style.mlp}/Dense_1"),
    ]


def big_vision_encoder(style: BigVisionNames, depth: int) -> list[TensorRule]:
    """The rules of all blocks and the norm after them."""
    blocks = [_block(style, i) for i in range(depth)]
    if style.is_scanned:
        rules = [scanned(parts) for parts in zip(*blocks, strict=True)]
    else:
        rules = [rule for block in blocks for rule in block]
    return rules + _layer(("norm",), f"{style.encoder}/encoder_norm", ("scale", "bias"))


def _map_pool() -> list[TensorRule]:
    name = "MAPHead_0"
    attention = f"{name}/MultiHeadDotProductAttention_0"
    return [
        same(("map_pool", "probe"), f"{name}/probe"),
        *big_vision_dense(("map_pool", "q"), f"{attention}/query"),
        *_joint(("map_pool", "kv"), attention, ("key", "value")),
        *big_vision_dense(("map_pool", "out"), f"{attention}/out"),
        *_layer(("map_pool", "norm"), f"{name}/LayerNorm_0", ("scale", "bias")),
        *big_vision_dense(("map_pool", "mlp", "fc1"), f"{name}/MlpBlock_0/Dense_0"),
        *big_vision_dense(("map_pool", "mlp", "fc2"), f"{name}/MlpBlock_0/Dense_1"),
    ]


def big_vision_map(style: BigVisionNames, model: Model) -> list[TensorRule]:
    """The rules for all parameters of a model. Raises CheckpointError if big_vision lacks a part of it."""
    sizes = dims(model)
    refused = {
        "registers or summaries": model.num_registers or model.summary_factor,
        "LayerScale": model.layer_scale_init is not None,
        "SwiGLU": sizes.mlp != "mlp",
        "a norm before the first block": model.use_norm_pre,
        "a norm after pooling": model.use_norm_after_pool,
        "a mask token": model.use_mask_token,
        "attention without bias": not model.use_qkv_bias,
        "a patch embedding without bias": not model.use_patch_bias,
        "a head without bias": not model.use_head_bias,
    }
    for what, is_there in refused.items():
        if is_there:
            raise CheckpointError(f"'big_vision' checkpoints have no place for {what}")
    rules = big_vision_dense(("patch_embed",), "embedding")
    if model.use_cls:
        rules.append(same(("cls_token",), "cls"))
    if model.positions == "learned":
        rows: list[Leaf] = [("cls_pos",)] if model.use_cls and model.has_cls_position else []
        rules.append(joined((*rows, ("pos_embed",)), style.positions))
    rules += big_vision_encoder(style, sizes.depth)
    if model.pooling == "map":
        rules += _map_pool()
    if model.use_pre_logits:
        rules += big_vision_dense(("pre_logits",), "pre_logits")
    if model.num_classes:
        rules += big_vision_dense(("head",), "head")
    return rules


def infer_big_vision(style: BigVisionNames, found: RecognizedWeights) -> Model:
    """The Model of a big_vision checkpoint. Without a position table, positions are sincos2d."""
    shapes, where, hints = found.weights.shapes, found.weights.where, found.hints
    patch_size, _, channels, width = shapes["embedding/kernel"]
    block = "Transformer/encoderblock" + ("" if style.is_scanned else "_0")
    kernel, lead = f"{block}/{style.mlp}/Dense_0/kernel", int(style.is_scanned)
    query = f"{block}/{style.attention}/query/kernel"
    for name in (kernel, query):
        if name not in shapes:
            raise CheckpointError(f"{where}: '{name}' is missing")
    depth = shapes[kernel][0] if style.is_scanned else count_blocks("Transformer/encoderblock_{}/", shapes)
    use_cls = "cls" in shapes
    image_size, rows = hints.image_size, 0
    if style.positions in shapes:
        total = shapes[style.positions][1]
        is_square = native_grid(total, patch_size, hints.image_size) is not None
        rows = int(
            use_cls and (style == BIG_VISION_ORIGINAL or not is_square)
        )  # cls has a position in older files
        grid = native_grid(total - rows, patch_size, hints.image_size)
        if grid is None:
            raise CheckpointError(
                f"{where}: '{style.positions}' has {total} rows, which is not a square grid: give image_size"
            )
        image_size = (grid[0] * patch_size, grid[1] * patch_size)
    if image_size is None:
        raise CheckpointError(
            f"{where} has no position table, so its positions are sincos2d, for an image size that is not in "
            "the tensors: give image_size (224 for the published S/16 models)"
        )
    has_map = "MAPHead_0/probe" in shapes
    is_learned = style.positions in shapes
    model = Model(
        width=width,
        depth=depth,
        num_heads=hints.num_heads or shapes[query][lead + 1],
        mlp="mlp",
        mlp_dim=shapes[kernel][-1],
        channels=channels,
        patch_size=patch_size,
        image_size=image_size,
        use_cls=use_cls,
        positions="learned" if is_learned else "sincos2d",
        has_cls_position=rows > 0,
        pooling=hints.pooling or ("map" if has_map else "cls" if use_cls else "gap"),
        use_pre_logits="pre_logits/kernel" in shapes,
        num_classes=shapes["head/kernel"][1] if "head/kernel" in shapes else 0,
    )
    model = with_family_settings(model, found)
    if not is_learned and hints.interpolation is None:
        model = dataclasses.replace(model, position_resampling="none")  # recomputed for every size
    return model
