"""Rewrites a model into an equivalent one that the target format can represent.

This module lists the rewrites of each format, which are defined in rewrites.py and family_rewrites.py.
"""

from collections.abc import Callable

from vit_registers.config import Model, lookup
from vit_registers.interop.export import dinov3, eva, family_rewrites, rewrites
from vit_registers.interop.export.rewrites import Draft, Params
from vit_registers.interop.infer import FAMILIES
from vit_registers.models.blocks import dims
from vit_registers.models.positions import position_rule

_FROM_ANY = (rewrites.refuse_masks_and_summaries, rewrites.store_positions, rewrites.store_registers)
_WITH_CLS = (*_FROM_ANY, rewrites.require_cls)
_DINOV2 = (
    *_WITH_CLS,
    rewrites.fold_register_positions,
    rewrites.add_cls_position,
    rewrites.add_patch_bias,
    rewrites.add_layer_scale,
    rewrites.add_mask_token,
)
_CLIP = (
    *_WITH_CLS,
    rewrites.refuse_swiglu,
    rewrites.require_cls_head,
    rewrites.add_cls_position,
    rewrites.fold_patch_bias,
    rewrites.add_qkv_bias,
)
_HF_VIT = (
    *_WITH_CLS,
    rewrites.add_cls_position,
    rewrites.add_patch_bias,
    rewrites.add_head_bias,
    rewrites.drop_mask_token,
    family_rewrites.note_missing_pooler,
)
_WITHOUT_LAYER_SCALE = (
    rewrites.fold_layer_scale,
    rewrites.drop_mask_token,
    rewrites.add_patch_bias,
    rewrites.move_norm_before_pooling,
    rewrites.add_head_bias,
)

REWRITES: dict[str, tuple[Callable[[Draft], None], ...]] = {
    "dinov2": (*_DINOV2, rewrites.add_qkv_bias),
    "deit": (
        *_WITH_CLS,
        rewrites.refuse_swiglu,
        family_rewrites.check_deit_head,
        family_rewrites.fit_deit_positions,
        rewrites.add_patch_bias,
        rewrites.add_qkv_bias,
        rewrites.drop_mask_token,
    ),
    "dino": (
        *_WITH_CLS,
        rewrites.refuse_swiglu,
        rewrites.add_cls_position,
        rewrites.add_patch_bias,
        rewrites.add_qkv_bias,
    ),
    "clip": _CLIP,
    "open_clip": _CLIP,
    "timm": (
        *_FROM_ANY,
        family_rewrites.fit_timm_positions,
        rewrites.drop_mask_token,
        family_rewrites.fit_timm_patch_bias,
        family_rewrites.note_timm_layers,
        rewrites.move_norm_before_pooling,
        rewrites.add_head_bias,
        family_rewrites.check_timm_head,
    ),
    "big_vision": (
        rewrites.refuse_masks_and_summaries,
        family_rewrites.check_big_vision_pooling,
        family_rewrites.fit_big_vision_positions,
        *_WITHOUT_LAYER_SCALE,
    ),
    "mup_vit": (
        rewrites.refuse_swiglu,
        family_rewrites.check_mup_vit_pooling,
        family_rewrites.fit_mup_vit_tokens,
        *_WITHOUT_LAYER_SCALE,
    ),
    "transformers/dinov2": (
        *_DINOV2,
        rewrites.add_head_bias,
        rewrites.move_norm_before_pooling,
        family_rewrites.widen_head_to_cls_and_mean,
    ),
    "transformers/vit": _HF_VIT,
    "transformers/deit": _HF_VIT,
    "transformers/clip": (
        *_CLIP,
        rewrites.fold_register_positions,
        rewrites.drop_mask_token,
        rewrites.fold_layer_scale,
    ),
    "transformers/siglip": (
        *_FROM_ANY,
        rewrites.refuse_swiglu,
        family_rewrites.check_siglip_tokens,
        rewrites.add_patch_bias,
        rewrites.add_qkv_bias,
        rewrites.drop_mask_token,
        rewrites.fold_layer_scale,
    ),
    **dinov3.REWRITES,
    **eva.REWRITES,
}


def set_target_resampling(d: Draft) -> None:
    """Sets the resampling of positions that the target format uses at other image sizes."""
    ours = d.model.position_resampling
    theirs = FAMILIES[d.target].get("position_resampling", Model.position_resampling)
    if d.target in ("clip", "mup_vit"):
        theirs = ours  # their code does not resample
    elif d.target in ("dinov2", "transformers/dinov2") and d.model.num_registers:
        theirs = "bicubic_aa"
    elif d.target == "big_vision" and not position_rule(d.model.positions).is_learned:
        theirs = "none"
    if theirs != ours and position_rule(d.model.positions).has_table:
        d.notes.append(f"at other image sizes, positions are resampled as '{theirs}' there, not as '{ours}'")
        d.set(position_resampling=theirs)


def set_target_layers(d: Draft) -> None:
    """Sets the GELU and the norm eps that readers of the target format assume, if no file records them."""
    if d.target.partition("/")[0] in ("timm", "transformers"):
        return
    model, family = d.model, FAMILIES[d.target]
    activation = family.get("activation", Model.activation)
    eps = family.get("norm_eps", Model.norm_eps)
    if activation != model.activation and dims(model).mlp == "mlp":
        d.notes.append(f"'{activation}' is assumed there: give '{model.activation}' when it is loaded")
    if eps != model.norm_eps:
        d.notes.append(f"norms have eps={eps:g} there, and {model.norm_eps:g} here")
    d.set(activation=activation, norm_eps=eps)


def rewrite_for(target: str, model: Model, params: Params) -> Draft:
    """The rewritten model for `target`, a key of REWRITES. `params` is changed. Raises CheckpointError."""
    draft = Draft(target=target, model=model, params=params, notes=[])
    rewrites.refuse_own_layers(draft)
    rewrites.refuse_cls_role(draft)
    for rewrite in lookup(REWRITES, target, "target"):
        rewrite(draft)
    set_target_resampling(draft)
    set_target_layers(draft)
    return draft
