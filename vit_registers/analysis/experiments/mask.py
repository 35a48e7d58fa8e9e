"""Who may attend to whom by the static mask, and how its levels are linked."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.report import figures
from vit_registers.analysis.report.result import Picture, Result, Table
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.masks import owners
from vit_registers.models.tokens import Grid, TokenLayout
from vit_registers.models.vit import static_attention


class Link(NamedTuple):
    """How a mask links the cells of a fine grid to those of a coarser one."""

    coarse: Grid
    fine: Grid
    linked_HxW: (
        np.ndarray
    )  # for each fine cell the one coarse cell that it may attend to; -1: none or several
    geometric_HxW: np.ndarray  # the coarse cell that it lies in
    tokens_S: np.ndarray  # how many fine cells each coarse cell is linked to

    @property
    def agreement(self) -> float:
        """The share of fine cells that are linked to the cell that they lie in, and to no other."""
        return float((self.linked_HxW == self.geometric_HxW).mean())


def links(mask_TxT: np.ndarray, layout: TokenLayout) -> list[Link]:
    """The links of every pair of grids, coarse to fine: summary levels with each other and with the patches.

    arXiv:2601.15506 describes blocks of the image, as `models.masks.owners` has them. Its code links other
    cells where a side of a grid is not a power of the second level's: `models.masks.fractal_released`.
    """
    levels, found = list(zip(layout.grids, layout.grid_slices, strict=True)), []
    for i, (coarse, at) in enumerate(levels):
        for fine, below in levels[i + 1 :]:
            is_linked_PxS = mask_TxT[below, at]
            has_one_P = is_linked_PxS.sum(axis=1) == 1
            linked_P = np.where(has_one_P, is_linked_PxS.argmax(axis=1), -1)
            geometric_HxW = owners(coarse, fine).reshape(fine)
            found.append(Link(coarse, fine, linked_P.reshape(fine), geometric_HxW, is_linked_PxS.sum(axis=0)))
    return found


def masks(subjects: list[Subject], options: Options) -> Result:
    """Who may attend to whom, and whether the links between levels are those of blocks of the image."""
    result = Result(
        definition="The static mask: the share of pairs that may attend, between token groups. Between "
        "levels: how many fine cells a coarse cell is linked to, and the share of fine cells that are linked "
        "to the coarse cell that they lie in, and to no other."
    )
    rows, link_rows = [], []
    for subject in subjects:
        mask_TxT, _ = static_attention(subject.model, subject.layout)
        if mask_TxT is None:
            result.gaps.append(f"{subject.name}: model.mask='none', all tokens attend to all")
            continue
        groups = subject.layout.level_groups
        rows.append((subject.name, "all", "all", float(np.mean(mask_TxT))))
        rows += [
            (subject.name, a, b, float(np.mean(mask_TxT[first, second])))
            for a, first in groups.items()
            for b, second in groups.items()
        ]
        title = f"{subject.name}: mask '{subject.model.mask}'"
        figure = figures.draw_mask(mask_TxT, groups, title=title)
        result.pictures.append(Picture(name=f"mask-{subject.name}", caption=title, figure=figure))
        found = links(mask_TxT, subject.layout)
        link_rows += [(subject.name, *_row(link)) for link in found]
        to_blocks = [link for link in found if len(link.tokens_S) > 1]
        if to_blocks:
            result.pictures.append(_draw(subject.name, to_blocks))
    if rows:
        columns = ("model", "queries", "keys", "share that may attend")
        result.tables.append(Table(title="Mask", columns=columns, rows=rows))
    if link_rows:
        columns = ("model", "coarse", "fine", "fewest linked", "most linked", "linked as they lie, %")
        result.tables.append(Table(title="Links between levels", columns=columns, rows=link_rows))
    return result


def _row(link: Link) -> tuple[str, str, int, int, float]:
    sizes = (f"{rows} x {columns}" for rows, columns in (link.coarse, link.fine))
    return (*sizes, int(link.tokens_S.min()), int(link.tokens_S.max()), 100 * link.agreement)


def _draw(name: str, found: list[Link]) -> Picture:
    pairs = [
        (f"{coarse} to {fine}\n{share:.1f} %", link.linked_HxW, link.geometric_HxW)
        for link in found
        for coarse, fine, _, _, share in [_row(link)]
    ]
    return Picture(
        name=f"links-{name}",
        caption=f"{name}: the cells of the finer grid, coloured by the cell of the coarser grid that the "
        "mask links them to (above) and that they lie in (below); grey: no link, or several.",
        figure=figures.draw_owners(pairs),
    )
