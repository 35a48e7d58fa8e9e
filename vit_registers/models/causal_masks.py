"""Masks in which no patch depends on a later one, for decoders. As those of masks.py, which lists them."""

import numpy as np

from vit_registers.errors import ConfigError
from vit_registers.models.tokens import TokenLayout


def causal(layout: TokenLayout) -> np.ndarray:
    """A patch attends to itself and to earlier patches, in row-major order.

    All tokens attend to cls, registers and summaries, and these attend to each other only: the same for each
    input, they hold what is learned, and nothing of the text.
    """
    mask_TxT = np.zeros((layout.num_tokens, layout.num_tokens), bool)
    mask_TxT[:, : layout.patches.start] = True
    mask_TxT[layout.patches, layout.patches] = np.tri(layout.num_patches, dtype=bool)
    return mask_TxT


def fractal_causal(layout: TokenLayout) -> np.ndarray:
    """The causal mask with summaries of spans: the counterpart of the fractal mask for decoders.

    A summary attends to all tokens of finer levels inside its span, as in the fractal mask, to itself and to
    earlier summaries of its level. It is seen only after the end of its span: a patch attends to one summary
    of each level, the last whose span has ended before it; a summary attends to the last coarser one whose
    span has ended before its own begins. cls and registers are seen by all, and see themselves only.

    For grids of one row. Raises ConfigError for others, and without summaries.
    """
    if not layout.summary_grids:
        raise ConfigError("model.mask='fractal_causal' requires summary tokens: set model.summary_factor=k")
    if layout.patch_grid[0] != 1:
        raise ConfigError(
            f"model.mask='fractal_causal' is for sequences, of one row of patches, not {layout.patch_grid}: "
            "use mask='fractal'"
        )
    mask_TxT = np.zeros((layout.num_tokens, layout.num_tokens), bool)
    mask_TxT[:, : layout.registers.stop] = True
    ends = [_ends(columns, layout.num_patches) for _, columns in layout.grids]
    levels = list(zip(layout.grid_slices, ends, strict=True))
    for i, (at, end_C) in enumerate(levels):
        mask_TxT[at, at] = np.tri(len(end_C), dtype=bool)
        start_C = np.concatenate([[0], end_C[:-1]])
        for below, end_F in levels[i + 1 :]:
            start_F = np.concatenate([[0], end_F[:-1]])
            # Where lengths are not multiples, a finer cell may lie across a border: it is inside of neither.
            is_inside_CxF = (start_C[:, None] <= start_F) & (end_F <= end_C[:, None])
            mask_TxT[at, below] = is_inside_CxF
            has_ended_FxC = end_C <= start_F[:, None]
            is_last_FxC = has_ended_FxC & ~np.pad(has_ended_FxC[:, 1:], [(0, 0), (0, 1)])
            mask_TxT[below, at] = is_last_FxC
    return mask_TxT


def _ends(cells: int, length: int) -> np.ndarray:
    """For each of `cells` spans of a sequence, the first patch after it, with the spans of masks.owners."""
    owner_P = np.arange(length) * cells // length
    return np.searchsorted(owner_P, np.arange(cells), side="right")


def is_causal(mask_TxT: np.ndarray | None, layout: TokenLayout) -> bool:
    """Whether no patch depends on a later one, in a model of any depth, through tokens of any group."""
    if mask_TxT is None:
        return layout.num_patches <= 1
    reach_TxT = mask_TxT | np.eye(len(mask_TxT), dtype=bool)
    for _ in range(int(np.ceil(np.log2(len(mask_TxT)))) or 1):
        counts_TxT = reach_TxT.astype(np.float32) @ reach_TxT.astype(np.float32)
        reach_TxT = counts_TxT > 0
    return not np.triu(reach_TxT[layout.patches, layout.patches], 1).any()
