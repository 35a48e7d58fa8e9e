"""Rewrites that only one target format needs; rewrites.py has those of several formats."""

import numpy as np

from vit_registers.config import Model
from vit_registers.interop.export import rewrites
from vit_registers.interop.export.rewrites import Draft
from vit_registers.interop.names.mup_vit import FRACTAL_MASKS
from vit_registers.models.blocks import dims
from vit_registers.models.pooling import pooled_width
from vit_registers.models.positions import position_rule, sincos2d
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
        rewrites.add_cls_position(d)
    else:
        rewrites.fold_cls_position(d)


def fit_timm_patch_bias(d: Draft) -> None:
    """Fits the bias of the patch embedding, which timm has unless a norm precedes the first block."""
    if d.model.use_norm_pre:
        rewrites.fold_patch_bias(d)
    else:
        rewrites.add_patch_bias(d)


def note_timm_layers(d: Draft) -> None:
    """Notes the layers of timm's arguments that json_configs.timm_arguments cannot express as text."""
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
        rewrites.add_cls_position(d)
        return
    rewrites.fold_register_positions(d)
    if d.model.layer_scale_init is not None or d.model.num_registers:
        rewrites.fold_cls_position(d)
    else:
        rewrites.add_cls_position(d)


def check_deit_head(d: Draft) -> None:
    """Raises CheckpointError for a head that does not read cls, or cls and the distillation token."""
    if d.model.pooling != "cls_registers" or not is_distilled(d.model):
        rewrites.require_cls_head(d)


def check_siglip_tokens(d: Draft) -> None:
    """Raises CheckpointError for tokens beside the patches, a classifier, or another pooling."""
    if d.model.use_cls or d.model.num_registers:
        d.refuse("pooling='map' and a cls token or registers")
    if d.model.num_classes:
        d.refuse("pooling='map' and a head")
    if d.model.use_norm_after_pool or d.model.pooling != "map":
        d.refuse(f"pooling='{d.model.pooling}' and no cls token, or a norm after pooling")


def check_big_vision_pooling(d: Draft) -> None:
    """Raises CheckpointError unless the model has a cls token exactly if it pools it."""
    if (d.model.num_classes or d.model.pooling == "map") and (d.model.pooling == "cls") != d.model.use_cls:
        d.refuse(f"pooling='{d.model.pooling}' {'and a' if d.model.use_cls else 'without'} cls token")
    if d.model.pooling not in ("cls", "gap", "map"):
        d.refuse(f"pooling='{d.model.pooling}'")


def fit_big_vision_positions(d: Draft) -> None:
    """Stores positions: big_vision reads a file without a table as a sincos2d model."""
    if d.model.positions == "none":
        rewrites.store_positions(d)
    rewrites.fold_cls_position(d)


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
    if position_rule(d.model.positions).rotation is not None:
        d.refuse(f"positions='{d.model.positions}'")
    if d.model.mask not in ("none", *FRACTAL_MASKS):
        d.refuse(f"mask='{d.model.mask}'")
    rewrites.fold_cls_position(d)
    if layout.has_cls:
        rewrites.store_registers(d)
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
