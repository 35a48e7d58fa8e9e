"""Which tokens may attend to which: TokenLayout -> static boolean mask_TxT, True = may attend. numpy only.

A mask is chosen by a text with arguments, such as model.mask="window(radius=2)"; MASKS lists them. In every
mask but `file`, `cls_through_registers` and those of causal_masks.py, cls and registers attend to all tokens,
and all tokens attend to them.
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_registers.config import Model
from vit_registers.config.strings import Call, parse_call
from vit_registers.digests import bytes_digest
from vit_registers.errors import ConfigError
from vit_registers.models.causal_masks import causal, fractal_causal
from vit_registers.models.positions import canonical_positions
from vit_registers.models.tokens import Grid, TokenLayout


def owners(coarse: Grid, fine: Grid) -> np.ndarray:
    """For each cell of grid `fine`, row-major, the flat index of the cell of grid `coarse` that contains it.

    Row r of t fine rows lies in row floor(r * s / t) of s coarse rows, and columns likewise, also where t is
    not a multiple of s: 14 on 3 gives blocks of 5, 5 and 4.
    """
    rows, columns = (np.arange(t) * s // t for s, t in zip(coarse, fine, strict=True))
    return (rows[:, None] * coarse[1] + columns).ravel()


def _require_summaries(layout: TokenLayout, name: str) -> None:
    if not layout.summary_grids:
        raise ConfigError(f"model.mask='{name}' requires summary tokens: set model.summary_factor=k, k >= 2")


def _frame(layout: TokenLayout) -> np.ndarray:
    """cls and registers with all tokens; every grid with itself; no other pairs."""
    mask_TxT = np.zeros((layout.num_tokens, layout.num_tokens), bool)
    mask_TxT[: layout.registers.stop] = True
    mask_TxT[:, : layout.registers.stop] = True
    for where in layout.grid_slices:
        mask_TxT[where, where] = True
    return mask_TxT


def none(layout: TokenLayout) -> None:
    """No mask: all tokens attend to all tokens."""


def fractal(layout: TokenLayout) -> np.ndarray:
    """The fractal mask: a summary token and each finer cell inside it, of every finer level, see each other.

    Each level sees all of itself, patches included; there are no other pairs across levels. This is the
    geometry of arXiv:2601.15506, for any grids; the code of that paper computes `fractal_released`.
    """
    _require_summaries(layout, "fractal")
    mask_TxT = _frame(layout)
    levels = list(zip(layout.grids, layout.grid_slices, strict=True))
    for i, (coarse, at) in enumerate(levels):
        for fine, below in levels[i + 1 :]:
            is_inside = owners(coarse, fine)[:, None] == np.arange(coarse[0] * coarse[1])
            mask_TxT[below, at] = is_inside
            mask_TxT[at, below] = is_inside.T
    return mask_TxT


def fractal_local(layout: TokenLayout) -> np.ndarray:
    """The fractal mask, but a patch sees only patches of its finest cell: an ablation of arXiv:2601.15506."""
    _require_summaries(layout, "fractal_local")
    mask_TxT = fractal(layout)
    owner_P = owners(layout.summary_grids[-1], layout.patch_grid)
    mask_TxT[layout.patches, layout.patches] = owner_P[:, None] == owner_P
    return mask_TxT


def fractal_released(layout: TokenLayout) -> np.ndarray:
    """The mask that the public code of arXiv:2601.15506 computes, bit for bit, including its defects.

    That code uses the side of the second level as k, and assumes that each side is k times the one before.
    If that holds (16 x 16 with k = 2 or 4), the mask is the geometric one. Otherwise (14 x 14) the blocks are
    runs of the flat sequence that do not correspond to blocks of the image.
    """
    _require_summaries(layout, "fractal_released")
    if any(rows != columns for rows, columns in layout.grids):
        raise ConfigError(
            f"model.mask='fractal_released' is defined for square grids only, not {layout.patch_grid}: "
            "use mask='fractal'"
        )
    mask_TxT = _frame(layout)
    sides = [rows for rows, _ in layout.grids]
    offsets = [where.start for where in layout.grid_slices]
    factor = sides[1]
    for i, side in enumerate(sides[:-1]):
        start = offsets[i]
        for j in range(1, len(sides) - i):
            start += (side * factor ** (j - 1)) ** 2  # where the code assumes that level i + j begins
            block = factor**j
            stride = side * block
            for row in range(side):
                for column in range(side):
                    token = offsets[i] + row * side + column
                    for inner in range(row * block, (row + 1) * block):
                        first = start + inner * stride + column * block
                        mask_TxT[token, first : first + block] = True
                        mask_TxT[first : first + block, token] = True
    return mask_TxT


def shifted(layout: TokenLayout, offset: int) -> np.ndarray:
    """The fractal mask with all summary grids displaced by `offset` patches, down and to the right.

    A summary and the patch in (row, column) see each other if the fractal mask allows the summary and the
    patch in (row - offset, column - offset), modulo the sides of the patch grid: each patch still sees one
    summary of each level. All other pairs are those of the fractal mask. The offset may be negative.
    """
    _require_summaries(layout, f"shifted(offset={offset})")
    mask_TxT = fractal(layout)
    rows, columns = layout.patch_grid
    index_HxW = np.arange(layout.num_patches).reshape(rows, columns)
    source_P = np.roll(index_HxW, (offset % rows, offset % columns), axis=(0, 1)).ravel()
    mask_TxT[layout.patches, layout.summaries] = mask_TxT[layout.patches, layout.summaries][source_P]
    mask_TxT[layout.summaries, layout.patches] = mask_TxT[layout.summaries, layout.patches][:, source_P]
    return mask_TxT


def one_way(layout: TokenLayout) -> np.ndarray:
    """The fractal mask, but patches do not attend to summaries: they read them through cls and registers."""
    _require_summaries(layout, "one_way")
    mask_TxT = fractal(layout)
    mask_TxT[layout.patches, layout.summaries] = False
    return mask_TxT


def window(layout: TokenLayout, radius: int) -> np.ndarray:
    """A patch attends to the patches within a Chebyshev distance of `radius`; all other pairs are allowed.

    The window is a square of 2 * radius + 1 patches; no summaries are required. Raises ConfigError if
    radius < 0.
    """
    if radius < 0:
        raise ConfigError(f"model.mask='window(radius={radius})': radius must be >= 0")
    mask_TxT = np.ones((layout.num_tokens, layout.num_tokens), bool)
    cells_2xP = np.mgrid[: layout.patch_grid[0], : layout.patch_grid[1]].reshape(2, -1)
    distance_PxP = np.abs(cells_2xP[:, :, None] - cells_2xP[:, None]).max(axis=0)
    mask_TxT[layout.patches, layout.patches] = distance_PxP <= min(radius, max(layout.patch_grid))
    return mask_TxT


def cls_through_registers(layout: TokenLayout) -> np.ndarray:
    """All pairs but those from cls to patches: cls reads the image through registers, and summaries if any.

    Registers must then collect what cls predicts from, which makes their part in it visible (the question of
    arXiv:2505.05892). Raises ConfigError without cls or without registers.
    """
    if not layout.has_cls or not layout.num_registers:
        raise ConfigError(
            "model.mask='cls_through_registers' requires cls and registers: set model.use_cls=True and "
            "model.num_registers=4"
        )
    mask_TxT = np.ones((layout.num_tokens, layout.num_tokens), bool)
    mask_TxT[layout.groups["cls"], layout.patches] = False
    return mask_TxT


def file(layout: TokenLayout, path: str, sha256: str = "") -> np.ndarray:
    """The boolean matrix [T, T] of a .npy file: rows attend, columns are attended to, tokens in our order.

    `sha256` is that of the file, in hex; `resolve` inserts it where it is missing. Raises ConfigError if the
    file cannot be read or has another digest, and for another shape or dtype, or a row without True.
    """
    where, content = f"model.mask: {path}", read_mask_file(path, sha256)
    try:
        mask_TxT = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # of many types, where the header is damaged
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{where} is not a .npy file of an array: {reason}") from error
    if mask_TxT.dtype != bool:
        raise ConfigError(f"{where} has dtype {mask_TxT.dtype}: save a matrix of bool, True = may attend")
    shape = (layout.num_tokens, layout.num_tokens)
    if mask_TxT.shape != shape:
        groups = ", ".join(f"{at.stop - at.start} {name}" for name, at in layout.groups.items())
        raise ConfigError(f"{where} has shape {mask_TxT.shape}: must be {shape}, for {groups}")
    empty = np.flatnonzero(~mask_TxT.any(axis=1))
    if empty.size:
        rows = f"{empty.size} rows without a True, first row {empty[0]}"
        raise ConfigError(f"{where} has {rows}: each row requires one")
    return mask_TxT


MASKS: dict[str, Callable[..., np.ndarray | None]] = {
    "none": none,
    "fractal": fractal,
    "fractal_released": fractal_released,
    "fractal_local": fractal_local,
    "shifted": shifted,
    "one_way": one_way,
    "window": window,
    "cls_through_registers": cls_through_registers,
    "causal": causal,
    "fractal_causal": fractal_causal,
    "file": file,
}


def parse_mask(mask: str) -> Call:
    """The name and the arguments of a mask. Raises ConfigError for an unknown one and for wrong arguments."""
    return parse_call(mask, MASKS, where="model.mask", example="window(radius=2)")


def build_mask(mask: str, layout: TokenLayout) -> np.ndarray | None:
    """The mask_TxT of model.mask; None for full attention. Raises ConfigError if it does not fit."""
    call = parse_mask(mask)
    mask_TxT = MASKS[call.name](layout, **call.arguments)
    assert mask_TxT is None or mask_TxT.any(axis=1).all(), "a token that sees no token"
    return mask_TxT


def read_mask_file(path: str, sha256: str = "") -> bytes:
    """The content of a mask's file. Raises ConfigError if it is unreadable or its SHA-256 is not `sha256`."""
    try:
        if not (at := Path(path).expanduser()).is_file():  # a pipe would wait for a writer
            raise ConfigError(f"model.mask: {path} is {'not a file' if at.exists() else 'missing'}")
        content = at.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the home of an unknown user
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"model.mask: {path} cannot be read: {reason}") from error
    digest = bytes_digest(content)
    if sha256 not in ("", digest):
        raise ConfigError(f"model.mask: {path} has changed: its SHA-256 is {digest}, not {sha256}")
    return content


def resolve(model: Model) -> Model:
    """The model with its mask, with the digest of its file if it has one, and positions in canonical text.

    "window(2)" becomes "window(radius=2)", "file('m.npy')" becomes "file(path='m.npy', sha256='...')". Raises
    ConfigError for text that is not a known mask or position, and for a file without `sha256` that cannot be
    read.
    """
    call = parse_mask(model.mask)
    if call.name == "file" and not call.arguments.get("sha256"):
        call.arguments["sha256"] = bytes_digest(read_mask_file(call.arguments["path"]))
    return dataclasses.replace(model, mask=str(call), positions=canonical_positions(model.positions))


def is_same_mask(one: Model, other: Model) -> bool:
    """Whether two models have the same mask. Of masks of files the digests are compared, not the paths."""
    calls = [parse_mask(resolve(model).mask) for model in (one, other)]
    for call in calls:
        call.arguments.pop("path", None)
    return calls[0] == calls[1]
