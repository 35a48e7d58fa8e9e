"""Models whose rotation counts patches in timm's class Eva: EVA-02, Perception Encoders, RoPE-ViT."""

from typing import Any

from vit_registers.config import Model
from vit_registers.interop.eva import positions_text
from vit_registers.interop.export import family_rewrites, rewrites
from vit_registers.interop.export.rewrites import Draft
from vit_registers.interop.names.dinov2_timm_clip import TorchNames
from vit_registers.interop.names.eva import eva_names
from vit_registers.models.blocks import dims, rotary
from vit_registers.models.pooling import pool_dims
from vit_registers.models.positions import position_rule, rotation_arguments
from vit_registers.models.rotary import IN_TRAINING

TIMM_ROPE = "timm/rope"
_ARGUMENTS = {"base", "coordinates", "pairs", "reference", "offset", "order", "learned", *IN_TRAINING}


def counts_patches(model: Model) -> bool:
    """Whether the coordinates of the rotation of `model` are indices of patches."""
    rotation = rotary(model)
    return rotation is not None and rotation.coordinates == "index"


def require_index_rotation(d: Draft) -> None:
    """Raises CheckpointError for a rotation, a table of positions or tokens that timm's class Eva lacks."""
    if d.model.mask != "none":
        d.refuse(f"mask='{d.model.mask}'")
    if d.model.summary_factor:
        d.refuse("summary tokens")
    rule, given = position_rule(d.model.positions), rotation_arguments(d.model.positions) or {}
    given = {name: value for name, value in given.items() if name != "summaries"}
    is_known = not set(given) - _ARGUMENTS and rule.bias is None and rule.is_learned == rule.has_table
    if given.get("learned") and ({"reference", "offset"} & set(given) or given.get("pairs") != "interleaved"):
        is_known = False
    if not is_known:
        d.refuse(f"positions='{d.model.positions}'")
    d.set(positions=positions_text(given, has_table=rule.is_learned))
    if not rule.is_learned:
        rewrites.fold_register_positions(d)
        d.set(has_cls_position=False)


def fit_layers(d: Draft) -> None:
    """Fits the patch bias and LayerScale. Raises CheckpointError for a pooling or GELU of other models."""
    model = d.model
    if model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{model.pooling}'")
    if model.pooling == "map" and model.pool_tokens != "all" and model.use_cls + model.num_registers:
        d.refuse(f"pooling='map', pool_tokens='{model.pool_tokens}' and cls or registers")
    if (dims(model).mlp == "mlp" or model.pooling == "map") and model.activation != "gelu":
        d.refuse(f"activation='{model.activation}'")
    if model.use_norm_pre and model.use_patch_bias and not position_rule(model.positions).is_learned:
        d.refuse("a norm before the blocks, a bias of patches and no table of positions")
    if not _reference(model):
        rewrites.add_layer_scale(d)  # which the only architecture without a reference has
    if not has_usual_eps(model):
        eps = model.norm_eps
        d.notes.append(f"timm also needs norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g})")


REWRITES = {
    TIMM_ROPE: (
        require_index_rotation,
        rewrites.store_registers,
        family_rewrites.fit_timm_positions,
        fit_layers,
        family_rewrites.fit_timm_patch_bias,
        rewrites.drop_mask_token,
        rewrites.move_norm_before_pooling,
        rewrites.add_head_bias,
    )
}


def eva_export_names(model: Model) -> TorchNames:
    """The names of the tensors of a rewritten model."""
    has_parts = dims(model).mlp == "swiglu" and model.use_mlp_norm
    return eva_names(["blocks.0.attn.qkv.bias", *["blocks.0.mlp.fc1_g.weight"] * has_parts])


def _reference(model: Model) -> int:
    return (rotation_arguments(model.positions) or {}).get("reference", 0)


def has_usual_eps(model: Model) -> bool:
    """Whether the norms of `architecture_of` have the eps of the model."""
    usual = 1e-5 if model.use_norm_pre and _reference(model) else 1e-6
    return model.norm_eps == usual and bool(not model.use_norm_pre or _reference(model))


def architecture_of(model: Model) -> str:
    """The architecture of timm whose remaining arguments `timm_rope_arguments` sets."""
    if not _reference(model):
        return "vit_small_patch16_rope_224"
    return "vit_pe_spatial_tiny_patch16_512" if model.use_norm_pre else "eva02_tiny_patch14_224"


def _ratio(hidden: int, width: int) -> float:
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width  # as timm computes it


def timm_rope_arguments(model: Model) -> dict[str, Any]:
    """The arguments of timm.models.eva.Eva for the exported tensors, where they can be text."""
    sizes, given = dims(model), rotation_arguments(model.positions) or {}
    pool, rotation = pool_dims(model, sizes), rotary(model)
    assert rotation is not None
    values = {
        "img_size": list(model.image_size),
        "patch_size": model.patch_size,
        "in_chans": model.channels,
        "num_classes": model.num_classes,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[model.pooling],
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_ratio": _ratio(sizes.mlp_dim, sizes.width),
        "swiglu_mlp": sizes.mlp == "swiglu",
        "scale_mlp": model.use_mlp_norm,
        "scale_attn_inner": model.use_attention_norm,
        "qkv_bias": model.use_qkv_bias,
        "qkv_fused": True,
        "attn_type": "rope",
        "init_values": model.layer_scale_init,
        "class_token": model.use_cls,
        "num_reg_tokens": model.num_registers,
        "no_embed_class": not model.has_cls_position and model.extra_positions == "none",
        "use_abs_pos_emb": position_rule(model.positions).is_learned,
        "use_pre_transformer_norm": model.use_norm_pre,
        "use_post_transformer_norm": model.use_final_norm and not model.use_norm_after_pool,
        "use_fc_norm": model.use_norm_after_pool,
        "attn_pool_num_heads": pool.num_heads if model.pooling == "map" else None,
        "attn_pool_mlp_ratio": _ratio(pool.mlp_dim, sizes.width) if model.pooling == "map" else None,
        "rope_type": "mixed" if rotation.is_learned else "cat",
        "rope_temperature": given.get("base", 100.0),
        "rope_grid_offset": rotation.offset,
        "rope_grid_indexing": {"yx": "ij", "xy": "xy"}[rotation.order],
        "rope_rotate_half": not rotation.is_interleaved,
        "ref_feat_shape": rotation.reference or None,
        **{f"rope_{name}_coords": given.get(name) for name in IN_TRAINING},
    }
    return {key: value for key, value in values.items() if value is not None}
