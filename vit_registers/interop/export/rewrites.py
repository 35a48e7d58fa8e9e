"""Rewrites of a model, settings and parameters together, that do not change its outputs.

Each rewrite makes a model representable in a target format. It raises CheckpointError if that is impossible,
and adds a note for a change that loading the exported file does not undo.
"""

import dataclasses
from typing import Any

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.models.blocks import dims
from vit_registers.models.positions import position_rule
from vit_registers.models.vit import token_layout

Params = dict[str, Any]


@dataclasses.dataclass
class Draft:
    """A model that is being rewritten; its parameters are nested dicts of numpy arrays."""

    target: str
    model: Model
    params: Params
    notes: list[str]

    def refuse(self, what: str) -> None:
        """Raises CheckpointError: the target format cannot represent `what`."""
        raise CheckpointError(f"a model with {what} cannot be written as '{self.target}'")

    def set(self, **settings: Any) -> None:
        """Changes settings of the model."""
        self.model = dataclasses.replace(self.model, **settings)

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of zeros in float32."""
        return np.zeros(shape, np.float32)


def refuse_masks_and_summaries(d: Draft) -> None:
    """Raises CheckpointError for masks, summaries, ALiBi and rotations, which the target lacks."""
    if d.model.mask != "none":
        d.refuse(f"mask='{d.model.mask}'")
    if d.model.summary_factor:
        d.refuse("summary tokens")
    rule = position_rule(d.model.positions)
    if rule.bias is not None or rule.rotation is not None:
        d.refuse(f"positions='{d.model.positions}'")


def refuse_own_layers(d: Draft) -> None:
    """Raises CheckpointError for norms and sizes that only timm's models have, or only this project."""
    own = {
        "use_attention_norm": False,
        "use_mlp_norm": False,
        "use_final_norm": True,
        "pool_tokens": "patches",
    }
    own = {} if d.target in ("timm", "timm/rope") else own
    own |= {} if d.target == "timm/rope" else {"pool_num_heads": None, "pool_mlp_dim": None}
    for name, usual in own.items():
        if (value := getattr(d.model, name)) != usual:
            d.refuse(f"{name}={value!r}")


def refuse_cls_role(d: Draft) -> None:
    """Raises CheckpointError for cls in the last blocks only, and for cls without a skip connection."""
    if d.model.cls_blocks is not None:
        d.refuse(f"cls_blocks={d.model.cls_blocks}")
    if not d.model.has_cls_skip:
        d.refuse("has_cls_skip=False")


def store_positions(d: Draft) -> None:
    """Stores fixed positions, or none, as a table of learned positions."""
    if d.model.positions == "learned":
        return
    layout, width = token_layout(d.model), dims(d.model).width
    fixed = position_rule(d.model.positions).table
    table = d.zeros(layout.num_patches, width) if fixed is None else fixed(layout.patch_grid, width)
    d.params["pos_embed"] = table[None]
    d.notes.append(f"positions '{d.model.positions}' are written as a table of learned positions")
    d.set(positions="learned", has_cls_position=False, position_resampling="bicubic_aa")
    d.params["cls_pos"] = None


def store_registers(d: Draft) -> None:
    """Stores fixed registers of zeros as learned ones."""
    if not d.model.num_registers or d.model.extra_positions == "sincos2d":
        d.set(extra_positions="none")
    if d.model.num_registers and d.model.registers == "zeros":
        d.params["registers"] = d.zeros(1, d.model.num_registers, dims(d.model).width)
        d.notes.append("fixed registers are written as learned registers")
    d.set(registers="learned")


def fold_register_positions(d: Draft) -> None:
    """Adds the positions of registers to the registers."""
    if d.model.extra_positions == "learned" and d.model.num_registers:
        d.params["registers"] = d.params["registers"] + d.params["extra_pos"]
        d.notes.append("the positions of registers are added to the registers")
    d.params["extra_pos"] = None
    d.set(extra_positions="none")


def add_cls_position(d: Draft) -> None:
    """Adds a position of zeros to cls if it has none."""
    if d.model.use_cls and not d.model.has_cls_position:
        d.params["cls_pos"] = d.zeros(1, 1, dims(d.model).width)
        d.set(has_cls_position=True)


def fold_cls_position(d: Draft) -> None:
    """Adds the position of cls to the cls token."""
    if d.params.get("cls_pos") is not None:
        d.params["cls_token"] = d.params["cls_token"] + d.params["cls_pos"]
        d.params["cls_pos"] = None
        d.notes.append("the position of cls is added to cls")
    d.set(has_cls_position=False)


def require_cls(d: Draft) -> None:
    """Raises CheckpointError without cls: a cls token would change the attention of all tokens."""
    if not d.model.use_cls:
        d.refuse("no cls token")


def refuse_swiglu(d: Draft) -> None:
    """Raises CheckpointError for SwiGLU, which the family does not have."""
    if dims(d.model).mlp != "mlp":
        d.refuse("SwiGLU")


def require_cls_head(d: Draft) -> None:
    """Raises CheckpointError for a head that reads anything but cls."""
    if d.model.num_classes and d.model.pooling != "cls":
        d.refuse(f"a head and pooling='{d.model.pooling}'")


def add_patch_bias(d: Draft) -> None:
    """Adds a bias of zeros to the patch embedding if it has none."""
    if not d.model.use_patch_bias:
        d.params["patch_embed"]["bias"] = d.zeros(dims(d.model).width)
        d.set(use_patch_bias=True)


def fold_patch_bias(d: Draft) -> None:
    """Adds the bias of the patch embedding to the positions; every resampling preserves a constant."""
    if d.model.use_patch_bias:
        d.params["pos_embed"] = d.params["pos_embed"] + d.params["patch_embed"]["bias"]
        d.params["patch_embed"]["bias"] = None
        d.notes.append("the bias of the patch embedding is added to the positions")
    d.set(use_patch_bias=False)


def add_qkv_bias(d: Draft) -> None:
    """Adds biases of zeros to queries, keys and values if they have none."""
    if not d.model.use_qkv_bias:
        for block in d.params["blocks"].values():
            block["attn"]["qkv"]["bias"] = d.zeros(*block["attn"]["qkv"]["kernel"].shape[1:])
        d.set(use_qkv_bias=True)


def add_head_bias(d: Draft) -> None:
    """Adds a bias of zeros to the head if it has none."""
    if d.model.num_classes and not d.model.use_head_bias:
        d.params["head"]["bias"] = d.zeros(d.model.num_classes)
        d.set(use_head_bias=True)


def add_layer_scale(d: Draft) -> None:
    """Adds LayerScale of ones if there is none."""
    if d.model.layer_scale_init is None:
        for block in d.params["blocks"].values():
            for name in ("ls1", "ls2"):
                block[name] = {"gamma": np.ones(dims(d.model).width, np.float32)}
        d.set(layer_scale_init=1.0)


def fold_layer_scale(d: Draft) -> None:
    """Multiplies LayerScale into the layers before it."""
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


def add_mask_token(d: Draft) -> None:
    """Adds a mask token of zeros if there is none."""
    if not d.model.use_mask_token:
        d.params["mask_token"] = d.zeros(1, 1, dims(d.model).width)
        d.set(use_mask_token=True)


def drop_mask_token(d: Draft) -> None:
    """Drops the mask token."""
    if d.model.use_mask_token:
        d.notes.append("the mask token is left out")
    d.params["mask_token"] = None
    d.set(use_mask_token=False)


def move_norm_before_pooling(d: Draft) -> None:
    """Moves the final norm before cls pooling, with which it commutes."""
    if d.model.use_norm_after_pool and d.model.pooling == "cls":
        d.set(use_norm_after_pool=False)
