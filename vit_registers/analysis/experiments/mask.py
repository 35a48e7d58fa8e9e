"""mask: which tokens may attend to which, and how the levels of the mask are linked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.report import figures
from vit_registers.analysis.report.finding import counted, number
from vit_registers.analysis.report.result import Gap, Picture, Rows
from vit_registers.analysis.subject import Options, Subject
from vit_registers.models.masks import owners
from vit_registers.models.tokens import Grid, TokenLayout
from vit_registers.models.vit import static_attention


class Link(NamedTuple):
    """How a mask links the cells of a fine grid to those of a coarser one."""

    coarse: Grid
    fine: Grid
    linked_HxW: np.ndarray  # the one coarse cell that a fine cell may attend to; -1: none or several
    geometric_HxW: np.ndarray  # the coarse cell that it lies in
    tokens_S: np.ndarray  # number of fine cells that each coarse cell is linked to

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


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    mask_TxT, _ = static_attention(subject.model, subject.layout)
    if mask_TxT is None:
        return Gap(f"{subject.name}: model.mask='none', all tokens attend to all")
    groups, kind = subject.layout.level_groups, subject.model.mask
    share = float(np.mean(mask_TxT))
    shares = [
        (subject.name, a, b, float(np.mean(mask_TxT[first, second])))
        for a, first in groups.items()
        for b, second in groups.items()
    ]
    found = links(mask_TxT, subject.layout)
    return Rows(
        tables={
            "Mask": [(subject.name, "all", "all", share), *shares],
            "Links between levels": [(subject.name, *_row(link)) for link in found],
        },
        text=f"mask '{kind}' lets {number(100 * share, '%')} of the pairs of tokens attend",
        compared=100 * share,
        count=counted(mask_TxT.size, "pair"),
        values=(f"{subject.name}: mask '{kind}'", mask_TxT, groups, found),
    )


def _row(link: Link) -> tuple[str, str, int, int, float]:
    coarse, fine = (f"{rows} x {columns}" for rows, columns in (link.coarse, link.fine))
    return coarse, fine, int(link.tokens_S.min()), int(link.tokens_S.max()), 100 * link.agreement


def _draw(found: Sequence[Rows]) -> list[Picture]:
    pictures = []
    for one in found:
        title, mask_TxT, groups, of_levels = one.values
        figure = figures.draw_mask(mask_TxT, groups, title=title)
        pictures.append(Picture(name=f"mask-{one.name}", caption=title, figure=figure))
        to_blocks = [link for link in of_levels if len(link.tokens_S) > 1]
        if to_blocks:
            pictures.append(_draw_links(one.name, to_blocks))
    return pictures


def _draw_links(name: str, found: Sequence[Link]) -> Picture:
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


EXPERIMENT = Experiment(
    question="Who may attend to whom?",
    answers="arXiv:2601.15506, the fractal mask",
    definition="The static mask: the share of pairs that may attend, between token groups. Between "
    "levels: how many fine cells a coarse cell is linked to, and the share of fine cells that are linked "
    "to the coarse cell that they lie in, and to no other.",
    tables={
        "Mask": "model | queries | keys | share that may attend",
        "Links between levels": "model | coarse | fine | fewest linked | most linked | linked as they lie, %",
    },
    measure=_measure,
    draw=_draw,
    compares="share of pairs that may attend, %",
)
