"""Changes of a model on its way out that leave its answers as they are, settings and parameters together.

What cannot be said is refused. What coming back in again does not undo is noted.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.models.blocks import dims
from vit_registers.models.positions import POSITIONS
from vit_registers.models.vit import token_layout

Params = dict[str, Any]


@dataclasses.dataclass
class Draft:
    """A model on its way out; the parameters are numpy arrays, in nested dicts that may be changed."""

    target: str
    model: Model
    params: Params
    notes: list[str]

    def refuse(self, what: str) -> None:
        """Raises CheckpointError: the target has no place for `what`."""
        raise CheckpointError(f"a model with {what} cannot be written as '{self.target}'")

    def set(self, **settings: Any) -> None:
        self.model = dataclasses.replace(self.model, **settings)

    def zeros(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)


def refuse_masks_and_summaries(d: Draft) -> None:
    """Masks, ALiBi and summaries are this project's."""
    if d.model.mask != "none":
        d.refuse(f"mask='{d.model.mask}'")
    if d.model.summary_factor:
        d.refuse("summary tokens")
    if d.model.positions == "alibi2d":
        d.refuse("positions='alibi2d'")


def learned_positions(d: Draft) -> None:
    """Fixed tables, and none at all, as tables that could be learned."""
    if d.model.positions == "learned":
        return
    layout, width = token_layout(d.model), dims(d.model).width
    fixed = POSITIONS[d.model.positions].table
    table = d.zeros(layout.num_patches, width) if fixed is None else fixed(layout.patch_grid, width)
    d.params["pos_embed"] = table[None]
    d.notes.append(f"positions '{d.model.positions}' are written as a table, which a trainer would learn")
    d.set(positions="learned", has_cls_position=False, position_resampling="bicubic_aa")
    d.params["cls_pos"] = None


def learned_registers(d: Draft) -> None:
    """Registers of zeros as registers that could be learned; no positions where nothing has one."""
    if not d.model.num_registers or d.model.extra_positions == "sincos2d":  # which gives registers none
        d.set(extra_positions="none")
    if d.model.num_registers and d.model.registers == "zeros":
        d.params["registers"] = d.zeros(1, d.model.num_registers, dims(d.model).width)
        d.notes.append("fixed registers are written as ones that a trainer would learn")
    d.set(registers="learned")


def registers_without_positions(d: Draft) -> None:
    """The positions of registers added to the registers."""
    if d.model.extra_positions == "learned" and d.model.num_registers:
        d.params["registers"] = d.params["registers"] + d.params["extra_pos"]
        d.notes.append("the positions of registers are added to the registers")
    d.params["extra_pos"] = None
    d.set(extra_positions="none")


def cls_with_position(d: Draft) -> None:
    """A position of cls, of zeros where there was none."""
    if d.model.use_cls and not d.model.has_cls_position:
        d.params["cls_pos"] = d.zeros(1, 1, dims(d.model).width)
        d.set(has_cls_position=True)


def cls_without_position(d: Draft) -> None:
    """The position of cls added to cls."""
    if d.params.get("cls_pos") is not None:
        d.params["cls_token"] = d.params["cls_token"] + d.params["cls_pos"]
        d.params["cls_pos"] = None
        d.notes.append("the position of cls is added to cls")
    d.set(has_cls_position=False)


def need_cls(d: Draft) -> None:
    """All tokens see cls, so one cannot be put in."""
    if not d.model.use_cls:
        d.refuse("no cls token")


def no_swiglu(d: Draft) -> None:
    """The family has MLPs of one branch only."""
    if dims(d.model).mlp != "mlp":
        d.refuse("SwiGLU")


def head_on_cls(d: Draft) -> None:
    """The head of the family reads cls."""
    if d.model.num_classes and d.model.pooling != "cls":
        d.refuse(f"a head and pooling='{d.model.pooling}'")


def patch_bias(d: Draft) -> None:
    """A bias of the patch embedding, of zeros where there was none."""
    if not d.model.use_patch_bias:
        d.params["patch_embed"]["bias"] = d.zeros(dims(d.model).width)
        d.set(use_patch_bias=True)


def no_patch_bias(d: Draft) -> None:
    """The bias of the patch embedding added to the positions: all ways of resampling keep a constant."""
    if d.model.use_patch_bias:
        d.params["pos_embed"] = d.params["pos_embed"] + d.params["patch_embed"]["bias"]
        d.params["patch_embed"]["bias"] = None
        d.notes.append("the bias of the patch embedding is added to the positions")
    d.set(use_patch_bias=False)


def qkv_bias(d: Draft) -> None:
    """Biases of queries, keys and values, of zeros where there were none."""
    if not d.model.use_qkv_bias:
        for block in d.params["blocks"].values():
            block["attn"]["qkv"]["bias"] = d.zeros(*block["attn"]["qkv"]["kernel"].shape[1:])
        d.set(use_qkv_bias=True)


def head_bias(d: Draft) -> None:
    """A bias of the head, of zeros where there was none."""
    if d.model.num_classes and not d.model.use_head_bias:
        d.params["head"]["bias"] = d.zeros(d.model.num_classes)
        d.set(use_head_bias=True)


def layer_scale(d: Draft) -> None:
    """LayerScale, of ones where there was none."""
    if d.model.layer_scale_init is None:
        for block in d.params["blocks"].values():
            for name in ("ls1", "ls2"):
                block[name] = {"gamma": np.ones(dims(d.model).width, np.float32)}
        d.set(layer_scale_init=1.0)


def no_layer_scale(d: Draft) -> None:
    """LayerScale multiplied into the layers before it."""
    if d.model.layer_scale_init is None:
        return
    last = "w3" if dims(d.model).mlp == "swiglu" else "fc2"
    for block in d.params["blocks"].values():
        for name, layer in (("ls1", block["attn"]["out"]), ("ls2", block["mlp"][last])):
            layer["kernel"] = layer["kernel"] * block[name]["gamma"]
            layer["bias"] = layer["bias"] * block[name]["gamma"]
            block[name] = None
    d.notes.append("LayerScale is multiplied into the layers before it")
    d.set(layer_scale_init=None)


def mask_token(d: Draft) -> None:
    """A mask token, of zeros where there was none."""
    if not d.model.use_mask_token:
        d.params["mask_token"] = d.zeros(1, 1, dims(d.model).width)
        d.set(use_mask_token=True)


def no_mask_token(d: Draft) -> None:
    """The mask token left out."""
    if d.model.use_mask_token:
        d.notes.append("the mask token is left out")
    d.params["mask_token"] = None
    d.set(use_mask_token=False)


def norm_before_pooling(d: Draft) -> None:
    """With cls pooling the norm of the pooled vector is the norm of all tokens, then cls."""
    if d.model.use_norm_after_pool and d.model.pooling == "cls":
        d.set(use_norm_after_pool=False)
