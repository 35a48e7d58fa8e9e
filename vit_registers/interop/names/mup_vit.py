"""The state_dict of the fractal paper's code (arXiv:2601.15506): its learned leaves, and its fixed buffers.

Its extra tokens are one tensor, `reg`: summaries, or registers, the first of which is cls if it is pooled.
Sincos tables, tokens of zeros and the mask are buffers: they follow from the settings, are compared on import
and written on export.
"""

import dataclasses
import itertools
import math

import numpy as np

from vit_registers.config import Model
from vit_registers.errors import CheckpointError
from vit_registers.interop.hints import Hints
from vit_registers.interop.infer import count_blocks, native_grid, num_heads, with_family_settings
from vit_registers.interop.names.dinov2_timm_clip import MUP_VIT_MAIN, MupVitNames
from vit_registers.interop.names.torch_map import torch_map
from vit_registers.interop.recognize import RecognizedWeights
from vit_registers.interop.tensor_map import TensorRule, fixed, is_fixed, joined
from vit_registers.models.blocks import dims
from vit_registers.models.masks import resolve
from vit_registers.models.paths import Leaf
from vit_registers.models.positions import sincos2d
from vit_registers.models.tokens import Grid, patch_grid, summary_grids
from vit_registers.models.vit import static_attention, token_layout

FRACTAL_MASKS = ("fractal_released", "fractal", "fractal_local")  # that files of this code may hold
_NO_FACTOR = "no summary factor gives on this grid: give image_size, the size that it was trained at"


def mup_vit_map(names: MupVitNames, model: Model) -> list[TensorRule]:
    """The rules for all parameters and buffers of a model. Raises CheckpointError; see torch_map."""
    plain = {"use_cls": False, "num_registers": 0, "summary_factor": None, "mask": "none", "pooling": "gap"}
    rules = torch_map(names, dataclasses.replace(model, **plain), "mup_vit")
    if leaves := _learned_tokens(model):
        rules.append(joined(leaves, names.registers))
    return rules + [fixed(name, value) for name, value in _buffers(names, model).items()]


def _learned_tokens(model: Model) -> tuple[Leaf, ...]:
    """The leaves that are the rows of `reg`; empty if it is a buffer."""
    leaves: list[Leaf] = [("cls_token",)] if model.use_cls else []
    leaves += [("registers",)] if model.num_registers and model.registers == "learned" else []
    leaves += [("summaries",)] if model.summary_factor and model.summaries == "learned" else []
    return tuple(leaves)


def _buffers(names: MupVitNames, model: Model) -> dict[str, np.ndarray]:
    layout, width = token_layout(model), dims(model).width
    buffers: dict[str, np.ndarray] = {}
    if model.positions == "sincos2d":
        buffers[names.positions] = sincos2d(layout.patch_grid, width)
    if layout.patches.start and not _learned_tokens(model):
        if layout.num_summaries and model.extra_positions == "sincos2d":
            tables = [sincos2d(grid, width) for grid in layout.summary_grids]
            buffers[names.registers] = np.concatenate(tables)
        else:
            buffers[names.registers] = np.zeros((1, layout.patches.start, width), np.float32)
    if names.mask is not None and (model.mask != "none" or model.positions == "alibi2d"):
        buffers[names.mask] = _mask_buffer(names, model)
    return buffers


def _mask_buffer(names: MupVitNames, model: Model) -> np.ndarray:
    """The buffer of mask and bias: True, or -inf in a sum, where a token may not attend."""
    mask_TxT, bias_NxTxT = static_attention(model, token_layout(model))
    if mask_TxT is not None and bias_NxTxT is None and names == MUP_VIT_MAIN:
        return ~mask_TxT
    additive = np.zeros((), np.float32)
    if mask_TxT is not None:
        additive = np.where(mask_TxT, 0.0, -np.inf).astype(np.float32)
    return additive if bias_NxTxT is None else additive + bias_NxTxT


def infer_mup_vit(names: MupVitNames, found: RecognizedWeights) -> Model:
    """The Model of a state_dict of that code. It pools patches unless the hint `pooling` is "cls".

    "cls" is its first token: the first register, or the first summary, whose pooling this project calls
    "summary". Raises CheckpointError if neither tensors nor hints determine a setting.
    """
    shapes, where, hints = found.weights.shapes, found.weights.where, found.hints
    width, channels, patch_size, _ = shapes[names.patch.format("weight")]
    fc1 = names.block.format(0) + names.fc1.format("weight")
    if fc1 not in shapes:
        raise CheckpointError(f"{where}: '{fc1}' is missing")
    if hints.pooling not in (None, "gap", "cls", "summary"):
        raise CheckpointError(
            f"{where}: pooling='{hints.pooling}': this code pools patches (gap) or its first token (cls)"
        )
    grid = _grid(names, found, patch_size)
    positions = "none"
    if names.positions in shapes:
        positions = "sincos2d" if len(shapes[names.positions]) == 2 else "learned"
    model = Model(
        width=width,
        depth=count_blocks(names.block, shapes),
        num_heads=num_heads(width, "mlp", found),
        mlp="mlp",
        mlp_dim=shapes[fc1][0],
        channels=channels,
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        positions=positions,
        has_cls_position=False,
        use_cls=False,
        pooling="gap",
        use_pre_logits=names.pre_logits.format("weight") in shapes,
        num_classes=shapes.get(names.head[0].format("weight"), (0,))[0],
    )
    model = with_family_settings(model, found)
    if positions == "sincos2d" and hints.interpolation is None:
        model = dataclasses.replace(model, position_resampling="none")
    readings = _readings(model, names, found)
    if names.mask is not None and names.mask in shapes:
        return _with_stored_mask(readings, names, names.mask, found)
    return _with_given_mask(readings, names, found)


def assumed(names: MupVitNames, found: RecognizedWeights, model: Model) -> str:
    """The assumption about settings that no tensor determines; empty if there is none."""
    hints = found.hints
    if hints.pooling is None and names.registers in found.weights.shapes:
        return "pooling gap was assumed: give pooling='cls' for a run that pools its first token (tok)"
    if model.use_cls and names.mask is None and hints.mask is None:
        return "cls and registers were assumed: give mask, or pooling='summary', for summaries"
    return ""


def _grid(names: MupVitNames, found: RecognizedWeights, patch_size: int) -> Grid:
    shapes, hints = found.weights.shapes, found.hints
    if names.positions in shapes:
        cells = math.prod(shapes[names.positions][:-1])
    elif names.mask is not None and names.mask in shapes:
        cells = shapes[names.mask][-1] - shapes.get(names.registers, (0, 0))[-2]
    elif hints.image_size is not None:
        return patch_grid(hints.image_size, patch_size)
    else:
        cells = 0
    grid = native_grid(cells, patch_size, hints.image_size)
    if grid is None:
        raise CheckpointError(f"{found.weights.where}: the image size is not in the tensors: give image_size")
    return grid


def _readings(model: Model, names: MupVitNames, found: RecognizedWeights) -> list[Model]:
    """The models that the extra tokens may belong to: with cls and registers, or with summaries."""
    shapes, where, hints = found.weights.shapes, found.weights.where, found.hints
    if names.registers not in shapes:
        if hints.pooling in ("cls", "summary"):
            raise CheckpointError(
                f"{where}: pooling='{hints.pooling}', but there is no '{names.registers}' to pool"
            )
        return [model]
    count, has_sincos = shapes[names.registers][-2], len(shapes[names.registers]) == 2
    kind = "zeros" if has_sincos or not found.weights[names.registers].any() else "learned"
    factor = _factor(patch_grid(model.image_size, model.patch_size), count)
    if factor is None and has_sincos:
        raise CheckpointError(f"{where}: '{names.registers}' has {count} tokens, {_NO_FACTOR}")
    readings = [] if has_sincos else [_as_registers(model, count, kind, hints)]
    if hints.pooling == "summary" or (hints.pooling == "cls" and kind == "zeros" and count > 1):
        readings = []  # a single pooled register of that code is zero; several are learned
        if factor is None:
            raise CheckpointError(
                f"{where}: pooling='{hints.pooling}', but '{names.registers}' has {count} tokens, "
                f"{_NO_FACTOR}"
            )
    if factor is not None:
        extra = {"summaries": kind, "extra_positions": "sincos2d" if has_sincos else "none"}
        extra |= {"pooling": "summary"} if hints.pooling in ("cls", "summary") else {}
        readings.append(dataclasses.replace(model, summary_factor=factor, **extra))
    return readings


def _as_registers(model: Model, count: int, kind: str, hints: Hints) -> Model:
    """The model whose extra tokens are registers; the first is cls if it is pooled."""
    if hints.pooling != "cls":
        return dataclasses.replace(model, num_registers=count, registers=kind)
    if kind == "zeros":
        return dataclasses.replace(model, num_registers=count, registers=kind, pooling="cls_registers")
    return dataclasses.replace(model, use_cls=True, num_registers=count - 1, pooling="cls")


def _factor(grid: Grid, count: int) -> int | None:
    factors = range(2, min(grid) + 1)
    fitting = (f for f in factors if sum(math.prod(level) for level in summary_grids(grid, f)) == count)
    return next(fitting, None)


def _with_stored_mask(
    readings: list[Model], names: MupVitNames, mask: str, found: RecognizedWeights
) -> Model:
    """The reading with the mask and ALiBi bias of the file. Raises CheckpointError if none matches."""
    there = found.weights[mask]
    for reading in readings:
        rows, columns = patch_grid(reading.image_size, reading.patch_size)
        kinds = FRACTAL_MASKS if reading.summary_factor else ()
        biases = ("none", "alibi2d") if reading.positions == "none" else (reading.positions,)
        for kind, bias in itertools.product((*kinds, "none"), biases):
            has_no_mask = kind == "none" and bias != "alibi2d"
            if has_no_mask or (kind == "fractal_released" and rows != columns):
                continue
            candidate = dataclasses.replace(reading, mask=kind, positions=bias)
            if is_fixed(there, _mask_buffer(names, candidate)):
                return candidate
    raise CheckpointError(
        f"{found.weights.where}: '{mask}' is none of the masks of this code: {', '.join(FRACTAL_MASKS)}, "
        "none, each with and without ALiBi"
    )


def _with_given_mask(readings: list[Model], names: MupVitNames, found: RecognizedWeights) -> Model:
    """The reading with the mask of the hints. Without a hint, a mask that is not stored is "none"."""
    where, hints = found.weights.where, found.hints
    summaries = next((reading for reading in readings if reading.summary_factor), None)
    is_unknown = hints.mask is None and names.mask is None and not readings[0].use_cls
    if is_unknown and summaries is not None and _is_exact(summaries):
        raise CheckpointError(
            f"{where} has summaries, and this variant of the code does not store its mask: "
            "give mask ('fractal_released' if it was trained with --fractal-mask, else 'none')"
        )
    if hints.mask in (None, "none"):
        return readings[0]
    if summaries is None:
        raise CheckpointError(
            f"{where}: mask='{hints.mask}', but it has as many extra tokens as {_NO_FACTOR}"
        )
    return resolve(dataclasses.replace(summaries, mask=hints.mask))


def _is_exact(model: Model) -> bool:
    """Whether the sides of the grids are powers of the factor, which this variant requires."""
    sides = [rows for rows, _ in token_layout(model).grids]
    return model.summary_factor is not None and sides == [model.summary_factor**i for i in range(len(sides))]
