"""A model in the terms of another family, before it goes out: what that family cannot say is said otherwise.

The steps of each family; those that several have are in steps.py.
"""

from collections.abc import Callable

import numpy as np

from vit_registers.config import Model, lookup
from vit_registers.interop.export.rewrites import (
    Draft,
    Params,
    cls_with_position,
    cls_without_position,
    head_bias,
    head_on_cls,
    layer_scale,
    learned_positions,
    learned_registers,
    mask_token,
    need_cls,
    no_layer_scale,
    no_mask_token,
    no_patch_bias,
    no_swiglu,
    norm_before_pooling,
    patch_bias,
    qkv_bias,
    refuse_masks_and_summaries,
    registers_without_positions,
)
from vit_registers.interop.names.mup_vit import FRACTAL_MASKS
from vit_registers.models.blocks import dims
from vit_registers.models.pooling import pooled_width
from vit_registers.models.positions import POSITIONS, sincos2d
from vit_registers.models.vit import token_layout


def head_on_cls_and_mean(d: Draft) -> None:
    """A head that reads [cls; mean of patches], with zeros for the one that it did not read."""
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


def no_pooler(d: Draft) -> None:
    """ViTModel and DeiTModel have a pooler, which no classifier reads, and which we do not have."""
    if not d.model.num_classes:
        d.notes.append("without add_pooling_layer=False, from_pretrained makes a pooler of random numbers")


def timm_positions(d: Draft) -> None:
    """timm gives positions to all tokens before the patches, or to none (no_embed_class)."""
    if not d.model.num_registers:
        return
    if d.model.extra_positions == "learned":
        cls_with_position(d)
    else:
        cls_without_position(d)


def timm_patch_bias(d: Draft) -> None:
    """timm has a bias of the patch embedding where there is no norm before the first block."""
    (no_patch_bias if d.model.use_norm_pre else patch_bias)(d)


def timm_layers(d: Draft) -> None:
    """Notes on the layers that timm is to be told and export.timm_arguments cannot, being no text."""
    if dims(d.model).mlp == "swiglu":
        d.notes.append("timm needs mlp_layer=timm.layers.SwiGLUPacked too")
    if d.model.norm_eps != 1e-6:
        eps = d.model.norm_eps
        d.notes.append(f"timm needs norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps:g}) too")


def timm_head(d: Draft) -> None:
    """What timm's head can read."""
    if d.model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{d.model.pooling}'")
    if d.model.pooling == "map" and dims(d.model).mlp == "swiglu":
        d.refuse("SwiGLU and pooling='map'")  # the MLPs of blocks and pooling share one width


def is_distilled(model: Model) -> bool:
    """Whether it is DeiT's with a distillation token: one register, with a position of its own."""
    return model.num_registers == 1 and model.extra_positions == "learned" and model.layer_scale_init is None


def deit_positions(d: Draft) -> None:
    """DeiT-III, known by LayerScale or registers, has positions of patches only; DeiT has those of all."""
    if is_distilled(d.model):
        cls_with_position(d)
        return
    registers_without_positions(d)
    if d.model.layer_scale_init is not None or d.model.num_registers:
        cls_without_position(d)
    else:
        cls_with_position(d)


def deit_head(d: Draft) -> None:
    """DeiT's heads read cls, or cls and the distillation token."""
    if d.model.pooling != "cls_registers" or not is_distilled(d.model):
        head_on_cls(d)


def big_vision_pooling(d: Draft) -> None:
    """big_vision has a cls token where it pools that, and only there."""
    if (d.model.num_classes or d.model.pooling == "map") and (d.model.pooling == "cls") != d.model.use_cls:
        d.refuse(f"pooling='{d.model.pooling}' {'and a' if d.model.use_cls else 'without'} cls token")
    if d.model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{d.model.pooling}'")


def big_vision_positions(d: Draft) -> None:
    """big_vision has learned positions, and takes files without any for those of sincos2d models."""
    if d.model.positions == "none":
        learned_positions(d)
    cls_without_position(d)


def mup_vit_pooling(d: Draft) -> None:
    """The fractal code pools patches or its first token, and no tensor tells which."""
    count = d.model.use_cls + d.model.num_registers
    if d.model.pooling == "gap":
        return
    if d.model.pooling not in ("cls", "summary") and not (d.model.pooling == "cls_registers" and count == 1):
        d.refuse(f"pooling='{d.model.pooling}'")
    d.notes.append("the first token is pooled: give pooling='cls' to read it")


def mup_vit_tokens(d: Draft) -> None:
    """The fractal code has one tensor of extra tokens: cls and registers, or summaries."""
    layout, width = token_layout(d.model), dims(d.model).width
    if layout.has_cls or layout.num_registers:
        if layout.num_summaries:
            d.refuse("summary tokens beside cls or registers")
        if d.model.positions == "alibi2d":
            d.refuse("positions='alibi2d' beside cls or registers")
    if d.model.mask not in ("none", *FRACTAL_MASKS):
        d.refuse(f"mask='{d.model.mask}'")
    cls_without_position(d)
    if layout.has_cls:
        learned_registers(d)
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


_FROM_ANY = (refuse_masks_and_summaries, learned_positions, learned_registers)
_HF_DINOV2 = (
    *_FROM_ANY,
    need_cls,
    registers_without_positions,
    cls_with_position,
    patch_bias,
    head_bias,
    layer_scale,
    mask_token,
    norm_before_pooling,
    head_on_cls_and_mean,
)
_HF_VIT = (*_FROM_ANY, need_cls, cls_with_position, patch_bias, head_bias, no_mask_token, no_pooler)

STEPS: dict[str, tuple[Callable[[Draft], None], ...]] = {
    "dinov2": (
        *_FROM_ANY,
        need_cls,
        registers_without_positions,
        cls_with_position,
        patch_bias,
        qkv_bias,
        layer_scale,
        mask_token,
    ),
    "deit": (*_FROM_ANY, need_cls, no_swiglu, deit_head, deit_positions, patch_bias, qkv_bias, no_mask_token),
    "dino": (*_FROM_ANY, need_cls, no_swiglu, cls_with_position, patch_bias, qkv_bias),
    "clip": (*_FROM_ANY, need_cls, no_swiglu, head_on_cls, cls_with_position, no_patch_bias, qkv_bias),
    "open_clip": (*_FROM_ANY, need_cls, no_swiglu, head_on_cls, cls_with_position, no_patch_bias, qkv_bias),
    "timm": (
        *_FROM_ANY,
        timm_positions,
        no_mask_token,
        timm_patch_bias,
        timm_layers,
        norm_before_pooling,
        head_bias,
        timm_head,
    ),
    "big_vision": (
        refuse_masks_and_summaries,
        big_vision_pooling,
        big_vision_positions,
        no_layer_scale,
        no_mask_token,
        patch_bias,
        norm_before_pooling,
        head_bias,
    ),
    "mup_vit": (
        no_swiglu,
        mup_vit_pooling,
        mup_vit_tokens,
        no_layer_scale,
        no_mask_token,
        patch_bias,
        norm_before_pooling,
        head_bias,
    ),
    "transformers/dinov2": _HF_DINOV2,
    "transformers/vit": _HF_VIT,
    "transformers/deit": _HF_VIT,
    "transformers/clip": (
        *_FROM_ANY,
        need_cls,
        no_swiglu,
        head_on_cls,
        registers_without_positions,
        cls_with_position,
        no_mask_token,
        no_patch_bias,
        qkv_bias,
        no_layer_scale,
    ),
}

# How those who read a format resample learned positions to other image sizes.
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


def their_resampling(d: Draft) -> None:
    """At other image sizes the answers are those of the target's way of resampling."""
    ours = d.model.position_resampling
    theirs = _RESAMPLINGS.get(d.target, ours)
    if d.target in ("dinov2", "transformers/dinov2") and d.model.num_registers:
        theirs = "bicubic_aa"
    if d.target == "big_vision":
        theirs = "linear" if POSITIONS[d.model.positions].is_learned else "none"
    if theirs != ours:
        d.notes.append(f"at other image sizes, positions are resampled as '{theirs}' there, not as '{ours}'")
        d.set(position_resampling=theirs)


# What those who read a format take for granted, since no tensor tells it: GELU and the eps of norms.
_LAYERS = {
    **dict.fromkeys(("dinov2", "deit", "dino", "mup_vit"), ("gelu", 1e-6)),
    **{"clip": ("quick_gelu", 1e-5), "open_clip": ("gelu", 1e-5), "big_vision": ("gelu_tanh", 1e-6)},
}


def their_layers(d: Draft) -> None:
    """The answers are those of the target's GELU and norms, unless its reader is told."""
    model = d.model
    activation, eps = _LAYERS.get(d.target, (model.activation, model.norm_eps))
    if activation != model.activation and dims(model).mlp == "mlp":
        d.notes.append(f"'{activation}' is taken for granted there: say that it is '{model.activation}' here")
    if eps != model.norm_eps:
        d.notes.append(f"norms have eps={eps:g} there, and {model.norm_eps:g} here")
    d.set(activation=activation, norm_eps=eps)


def express(target: str, model: Model, params: Params) -> Draft:
    """The model in terms of `target`, a key of STEPS. Takes `params` over. Raises CheckpointError."""
    draft = Draft(target=target, model=model, params=params, notes=[])
    for step in lookup(STEPS, target, "target"):
        step(draft)
    their_resampling(draft)
    their_layers(draft)
    return draft
