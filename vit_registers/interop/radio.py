"""RADIO and C-RADIO: the layers that differ from those of other families, and the settings.

Patches are embedded by a linear layer on their pixels, in the order channel, row, column. One tensor holds
the tokens before the patches: those of the teachers, called cls, then registers. The first one is cls here,
and all others are registers. The position table is that of the largest image; for others it is resampled
linearly to a square and cropped (models/resampling.py: bilinear_crop, linear_crop).
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.infer import count_blocks, mlp_sizes, num_heads, with_family_settings
from vit_registers.interop.names.radio import RadioNames
from vit_registers.interop.names.torch_map import torch_block, torch_norm
from vit_registers.interop.recognize import RecognizedWeights
from vit_registers.interop.tensor_map import Arrays, Shape, TensorRule, joined, same
from vit_registers.models.blocks import dims
from vit_registers.models.paths import Leaf

# Releases whose code resamples positions with fixed corners; later ones, and transformers, do not.
_FIXED_CORNERS = re.compile(r"radio_v[12].*|c-radio_v2.*|c-radio_v3-[bh]")


def radio_map(names: RadioNames, model: Model) -> list[TensorRule]:
    """The rules for all parameters of a model that infer_radio returns."""
    tokens: tuple[Leaf, ...] = (("cls_token",), ("registers",)) if model.num_registers else (("cls_token",),)
    rules = [
        _linear_patches(("patch_embed", "kernel"), names.patch.format("weight")),
        joined(tokens, names.cls, lead=names.cls_axes),
        joined((("pos_embed",),), names.positions, lead=names.position_axes),
    ]
    if model.use_patch_bias:
        rules.append(same(("patch_embed", "bias"), names.patch.format("bias")))
    if model.use_mask_token:
        rules.append(same(("mask_token",), names.mask_token or "", lead=names.mask_token_axes))
    for i in range(dims(model).depth):
        rules += torch_block(names, model, i, "radio")
    return rules + (torch_norm(("norm",), names.norm) if model.use_final_norm else [])


def _linear_patches(leaf: Leaf, name: str) -> TensorRule:
    """A patch embedding: the leaf is HWIO, the tensor [outputs, channels * rows * columns]."""

    def load(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        rows, columns, channels, width = shapes[0]
        return [arrays[0].reshape(width, channels, rows, columns).transpose(2, 3, 1, 0)]

    def dump(leaves: Arrays) -> Arrays:
        kernel = leaves[0].transpose(3, 2, 0, 1)
        return [kernel.reshape(kernel.shape[0], -1)]

    return TensorRule((leaf,), (name,), load, dump)


def infer_radio(names: RadioNames, found: RecognizedWeights) -> Model:
    """The Model of RADIO's tensors, at the image size of the position table.

    Raises CheckpointError if the tensors are of no square patches or of no square table.
    """
    shapes, where = found.weights.shapes, found.weights.where
    patch = names.patch.format("weight")
    width, inputs = shapes[patch]
    channels = int(found.settings.get("num_channels", 3))
    patch_size = math.isqrt(inputs // channels)
    if patch_size**2 * channels != inputs or not patch_size:
        raise CheckpointError(
            f"{where}: '{found.in_file(patch)}' is {shapes[patch]}, of no square patches with {channels} "
            "channels"
        )
    for name in (names.positions, names.cls):
        if name not in shapes:
            raise CheckpointError(f"{where}: '{found.in_file(name)}' is missing")
    cells = math.prod(shapes[names.positions][:-1])
    side = math.isqrt(cells)
    if side**2 != cells or not side:
        raise CheckpointError(
            f"{where}: '{found.in_file(names.positions)}' has {cells} rows, which is no square grid"
        )
    block = names.block.format(0)
    mlp, mlp_dim = mlp_sizes(names, found, block)
    model = Model(
        width=width,
        depth=count_blocks(names.block, shapes),
        mlp=mlp,
        mlp_dim=mlp_dim,
        num_heads=num_heads(width, mlp, found),
        channels=channels,
        patch_size=patch_size,
        image_size=(side * patch_size, side * patch_size),
        num_registers=shapes[names.cls][0] - 1,
        has_cls_position=False,
        use_mask_token=names.mask_token in shapes,
        layer_scale_init=1e-5 if block + (names.layer_scale or ("",))[0] in shapes else None,
        use_qkv_bias=block + names.qkv[0].format("bias") in shapes,
        use_patch_bias=names.patch.format("bias") in shapes,
        use_final_norm=names.norm.format("weight") in shapes,
        pooling=found.hints.pooling or "cls",
        num_classes=0,
    )
    model = with_family_settings(model, found)
    has_corners = _FIXED_CORNERS.fullmatch(str(found.settings.get("version", "")))
    if has_corners and found.hints.interpolation is None:
        return dataclasses.replace(model, position_resampling="linear_crop")
    return model


def describe_radio(found: RecognizedWeights) -> str:
    """What the tokens before the patches are, and what no tensor tells, in words."""
    parts = []
    summaries = next((name for name in found.file.shapes if name.endswith("summary_idxs")), None)
    if summaries is not None:
        numbers = ", ".join(str(int(i)) for i in np.asarray(found.file[summaries]).reshape(-1))
        parts.append(f"teachers' summaries are the tokens {numbers}: 0 is cls, and n is register n - 1")
    if not found.settings and found.hints.interpolation is None:
        parts.append(
            "positions are assumed to be resampled without fixed corners: interpolation='linear_crop' for "
            "RADIO up to v2.5 and C-RADIOv3-B and H"
        )
    return "; ".join(parts)


def input_statistics(file: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, deviation) of the images that the model normalises itself, from all tensors of a file."""
    ends = [f"input_conditioner.norm_{part}" for part in ("mean", "std")]
    found = [next((name for name in file if name.endswith(end)), None) for end in ends]
    if None in found:
        return None
    mean, std = (tuple(float(x) for x in np.asarray(file[name]).reshape(-1)) for name in found if name)
    return mean, std
