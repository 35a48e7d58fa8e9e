"""Rewrites a model into an equivalent one that the target format can represent.

This module has the list of rewrites of each format, and those that only one format needs; rewrites.py has
the others.
"""

from collections.abc import Callable

import numpy as np

from vit_registers.config import Model, lookup
from vit_registers.interop.export.rewrites import (
    Draft,
    Params,
    add_cls_position,
    add_head_bias,
    add_layer_scale,
    add_mask_token,
    add_patch_bias,
    add_qkv_bias,
    drop_mask_token,
    fold_cls_position,
    fold_layer_scale,
    fold_patch_bias,
    fold_register_positions,
    move_norm_before_pooling,
    refuse_masks_and_summaries,
    refuse_swiglu,
    require_cls,
    require_cls_head,
    store_positions,
    store_registers,
)
from vit_registers.models.blocks import dims
from vit_registers.models.pooling import pooled_width
from vit_registers.models.positions import POSITIONS, sincos2d
from vit_registers.models.vit import token_layout


def widen_head_to_cls_and_mean(d: Draft) -> None:
    """Widens the head to [cls; mean of patches], with zeros for the part that it did not read."""
    if d.model.pooling not in ("cls", "gap", "cls_gap"):
        d.refuse(f"pooling='{d.model.pooling}'")
    if d.model.use_pre_logits:
        d.refuse("a layer before the head (pre-logits)")
    if d.model.use_norm_after_pool:
        d.refuse("a norm after pooling")
    if d.model.num_classes and d.model.pooling != "cls_gap":
        kernel = d.params["head"]["kernel"]
        halves = [kernel, np.zeros_like(kernel)]
        d.params["head"]["kernel"] = np.concatenate(halves if d.model.pooling == "cls" else halves[::-1])
        d.set(pooling="cls_gap")
    assert not d.model.num_classes or d.params["head"]["kernel"].shape[0] == pooled_width(d.model)


def note_missing_pooler(d: Draft) -> None:
    """Notes that ViTModel and DeiTModel have a pooler, which no classifier reads and this project lacks."""
    if not d.model.num_classes:
        d.notes.append("without add_pooling_layer=False, from_pretrained initializes a pooler at random")


def fit_timm_positions(d: Draft) -> None:
    """Gives positions to all tokens before the patches or to none, as timm does (no_embed_class)."""
    if not d.model.num_registers:
        return
    if d.model.extra_positions == "learned":
        add_cls_position(d)
    else:
        fold_cls_position(d)


def fit_timm_patch_bias(d: Draft) -> None:
    """Fits the bias of the patch embedding, which timm has unless a norm precedes the first block."""
    (fold_patch_bias if d.model.use_norm_pre else add_patch_bias)(d)


def note_timm_layers(d: Draft) -> None:
    """Notes the layers that timm needs as arguments and targets.timm_arguments cannot express as text."""
    if dims(d.model).mlp == "swiglu":
        d.notes.append("timm also needs mlp_layer=timm.layers.SwiGLUPacked")
    if d.model.norm_eps != 1e-6:
        eps = d.model.norm_eps
        d.notes.append(f"timm also needs norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g})")


def check_timm_head(d: Draft) -> None:
    """Raises CheckpointError for a pooling that timm's head does not have."""
    if d.model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{d.model.pooling}'")
    if d.model.pooling == "map" and dims(d.model).mlp == "swiglu":
        d.refuse("SwiGLU and pooling='map'")  # the MLPs of blocks and pooling share one width


def is_distilled(model: Model) -> bool:
    """Whether the model is a DeiT with a distillation token: one register that has a position."""
    return model.num_registers == 1 and model.extra_positions == "learned" and model.layer_scale_init is None


def fit_deit_positions(d: Draft) -> None:
    """Fits positions: DeiT has them for all tokens, DeiT-III (LayerScale or registers) for patches only."""
    if is_distilled(d.model):
        add_cls_position(d)
        return
    fold_register_positions(d)
    if d.model.layer_scale_init is not None or d.model.num_registers:
        fold_cls_position(d)
    else:
        add_cls_position(d)


def check_deit_head(d: Draft) -> None:
    """Raises CheckpointError for a head that does not read cls, or cls and the distillation token."""
    if d.model.pooling != "cls_registers" or not is_distilled(d.model):
        require_cls_head(d)


def check_big_vision_pooling(d: Draft) -> None:
    """Raises CheckpointError unless the model has a cls token exactly if it pools it."""
    if (d.model.num_classes or d.model.pooling == "map") and (d.model.pooling == "cls") != d.model.use_cls:
        d.refuse(f"pooling='{d.model.pooling}' {'and a' if d.model.use_cls else 'without'} cls token")
    if d.model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{d.model.pooling}'")


def fit_big_vision_positions(d: Draft) -> None:
    """Stores positions: big_vision reads a file without a table as a sincos2d model."""
    if d.model.positions == "none":
        store_positions(d)
    fold_cls_position(d)


def check_mup_vit_pooling(d: Draft) -> None:
    """Raises CheckpointError unless patches or the first token are pooled; no tensor records which."""
    count = d.model.use_cls + d.model.num_registers
    if d.model.pooling == "gap":
        return
    if d.model.pooling not in ("cls", "summary") and not (d.model.pooling == "cls_registers" and count == 1):
        d.refuse(f"pooling='{d.model.pooling}'")
    d.notes.append("the first token is pooled: give pooling='cls' to load it")


def fit_mup_vit_tokens(d: Draft) -> None:
    """Fits the extra tokens into one tensor: cls and registers, or summaries."""
    layout, width = token_layout(d.model), dims(d.model).width
    if layout.has_cls or layout.num_registers:
        if layout.num_summaries:
            d.refuse("summary tokens beside cls or registers")
        if d.model.positions == "alibi2d":
            d.refuse("positions='alibi2d' beside cls or registers")
    fold_cls_position(d)
    if layout.has_cls:
        store_registers(d)
    name = "summaries" if layout.num_summaries else "registers"
    added = d.params.get("extra_pos")
    if d.model.extra_positions == "sincos2d" and d.model.summaries == "learned" and layout.num_summaries:
        added = np.concatenate([sincos2d(grid, width) for grid in layout.summary_grids])[None]
    if added is not None:
        there = d.params.get(name)
        d.params[name] = added if there is None else there + added
        d.params["extra_pos"] = None
        d.set(extra_positions="none", **{name: "learned"})
        d.notes.append(f"the positions of {name} are added to the {name}")


_FROM_ANY = (refuse_masks_and_summaries, store_positions, store_registers)
_HF_DINOV2 = (
    *_FROM_ANY,
    require_cls,
    fold_register_positions,
    add_cls_position,
    add_patch_bias,
    add_head_bias,
    add_layer_scale,
    add_mask_token,
    move_norm_before_pooling,
    widen_head_to_cls_and_mean,
)
_HF_VIT = (
    *_FROM_ANY,
    require_cls,
    add_cls_position,
    add_patch_bias,
    add_head_bias,
    drop_mask_token,
    note_missing_pooler,
)

_CLIP = (
    *_FROM_ANY,
    require_cls,
    refuse_swiglu,
    require_cls_head,
    add_cls_position,
    fold_patch_bias,
    add_qkv_bias,
)

REWRITES: dict[str, tuple[Callable[[Draft], None], ...]] = {
    "dinov2": (
        *_FROM_ANY,
        require_cls,
        fold_register_positions,
        add_cls_position,
        add_patch_bias,
        add_qkv_bias,
        add_layer_scale,
        add_mask_token,
    ),
    "deit": (
        *_FROM_ANY,
        require_cls,
        refuse_swiglu,
        check_deit_head,
        fit_deit_positions,
        add_patch_bias,
        add_qkv_bias,
        drop_mask_token,
    ),
    "dino": (*_FROM_ANY, require_cls, refuse_swiglu, add_cls_position, add_patch_bias, add_qkv_bias),
    "clip": _CLIP,
    "open_clip": _CLIP,
    "timm": (
        *_FROM_ANY,
        fit_timm_positions,
        drop_mask_token,
        fit_timm_patch_bias,
        note_timm_layers,
        move_norm_before_pooling,
        add_head_bias,
        check_timm_head,
    ),
    "big_vision": (
        refuse_masks_and_summaries,
        check_big_vision_pooling,
        fit_big_vision_positions,
        fold_layer_scale,
        drop_mask_token,
        add_patch_bias,
        move_norm_before_pooling,
        add_head_bias,
    ),
    "mup_vit": (
        refuse_swiglu,
        check_mup_vit_pooling,
        fit_mup_vit_tokens,
        fold_layer_scale,
        drop_mask_token,
        add_patch_bias,
        move_norm_before_pooling,
        add_head_bias,
    ),
    "transformers/dinov2": _HF_DINOV2,
    "transformers/vit": _HF_VIT,
    "transformers/deit": _HF_VIT,
    "transformers/clip": (
        *_FROM_ANY,
        require_cls,
        refuse_swiglu,
        require_cls_head,
        fold_register_positions,
        add_cls_position,
        drop_mask_token,
        fold_patch_bias,
        add_qkv_bias,
        fold_layer_scale,
    ),
}

# How readers of a format resample learned positions to other image sizes.
_RESAMPLINGS = {
    "dinov2": "bicubic_offset",
    "deit": "bicubic",
    "dino": "bicubic_offset",
    "open_clip": "bicubic_aa",
    "timm": "bicubic_aa",
    "transformers/dinov2": "bicubic",
    "transformers/vit": "bicubic",
    "transformers/deit": "bicubic",
    "transformers/clip": "bicubic",
}


def set_target_resampling(d: Draft) -> None:
    """Sets the resampling of positions that the target format uses at other image sizes."""
    ours = d.model.position_resampling
    theirs = _RESAMPLINGS.get(d.target, ours)
    if d.target in ("dinov2", "transformers/dinov2") and d.model.num_registers:
        theirs = "bicubic_aa"
    if d.target == "big_vision":
        theirs = "linear" if POSITIONS[d.model.positions].is_learned else "none"
    if theirs != ours:
        d.notes.append(f"at other image sizes, positions are resampled as '{theirs}' there, not as '{ours}'")
        d.set(position_resampling=theirs)


# What readers of a format assume, since no tensor records it: GELU and the eps of norms.
_LAYERS = {
    **dict.fromkeys(("dinov2", "deit", "dino", "mup_vit"), ("gelu", 1e-6)),
    **{"clip": ("quick_gelu", 1e-5), "open_clip": ("gelu", 1e-5), "big_vision": ("gelu_tanh", 1e-6)},
}


def set_target_layers(d: Draft) -> None:
    """Sets the GELU and the norm eps that readers of the target format assume."""
    model = d.model
    activation, eps = _LAYERS.get(d.target, (model.activation, model.norm_eps))
    if activation != model.activation and dims(model).mlp == "mlp":
        d.notes.append(f"'{activation}' is assumed there: give '{model.activation}' when it is loaded")
    if eps != model.norm_eps:
        d.notes.append(f"norms have eps={eps:g} there, and {model.norm_eps:g} here")
    d.set(activation=activation, norm_eps=eps)


def rewrite_for(target: str, model: Model, params: Params) -> Draft:
    """The rewritten model for `target`, a key of REWRITES. `params` is changed. Raises CheckpointError."""
    draft = Draft(target=target, model=model, params=params, notes=[])
    for rewrite in lookup(REWRITES, target, "target"):
        rewrite(draft)
    set_target_resampling(draft)
    set_target_layers(draft)
    return draft
