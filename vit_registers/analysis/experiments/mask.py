"""mask: which tokens may attend to which, and how the levels of the mask are linked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.colors import PALE
from vit_registers.analysis.report.figures import WIDTH, draw_mask, new_axes, new_grid
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.subject import Subject
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

    arXiv:2601.15506 describes blocks of the image, as `models.masks.owners` computes them. Its code links
    other cells where a side of a grid is not a power of the second level's: `models.masks.fractal_released`.
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
    share = 100 * float(np.mean(mask_TxT))
    shares = [
        (a, b, 100 * float(np.mean(mask_TxT[first, second])))
        for a, first in groups.items()
        for b, second in groups.items()
    ]
    found = links(mask_TxT, subject.layout)
    return Rows(
        tables={
            "Mask": [("all", "all", share), *shares],
            "Links between levels": [_row(link) for link in found],
        },
        text=f"mask '{kind}' lets {number(share, '%')} of the pairs of tokens attend",
        compared=share,
        count=counted(mask_TxT.size, "pair"),
        values=(f"{subject.name}: mask '{kind}'", mask_TxT, groups, found),
    )


def _row(link: Link) -> tuple[str, str, int, int, float]:
    coarse, fine = (f"{rows} x {columns}" for rows, columns in (link.coarse, link.fine))
    return coarse, fine, int(link.tokens_S.min()), int(link.tokens_S.max()), 100 * link.agreement


def _draw(found: Found) -> Pictures:
    for one in found:
        title, mask_TxT, groups, of_levels = one.values
        figure, axes = new_axes(3.4)
        draw_mask(axes, mask_TxT, groups)
        caption = f"{title}: {100 * mask_TxT.mean():.3g} % of the pairs may attend; dark: may attend."
        yield Picture(name=f"mask-{one.name}", caption=caption, figure=figure)
        to_blocks = [link for link in of_levels if len(link.tokens_S) > 1]
        if to_blocks:
            yield Picture(
                name=f"links-{one.name}",
                caption=f"{one.name}: the cells of the finer grid, coloured by the cell of the coarser grid "
                "that the mask links them to (above) and that they lie in (below); grey: no link, or "
                "several.",
                figure=_draw_links(to_blocks),
            )


def _draw_links(found: Sequence[Link]) -> Figure:
    """For each pair of levels, two maps of the fine grid: its cells' owners by the mask, and by the image."""
    figure, grid = new_grid(2, len(found), (min(1.7 * len(found) + 0.4, WIDTH), 3.0))
    for (top, below), link in zip(grid.T, found, strict=True):
        for axes, owner_HxW in ((top, link.linked_HxW), (below, link.geometric_HxW)):
            axes.imshow(_colors(owner_HxW), interpolation="none")
        coarse, fine, _, _, percent = _row(link)
        top.set_title(f"{coarse} to {fine}\n{percent:.1f} %", fontsize=8)
    grid[0, 0].set_ylabel("linked", fontsize=9)
    grid[1, 0].set_ylabel("lies in", fontsize=9)
    return figure


def _colors(owner_HxW: np.ndarray) -> np.ndarray:
    """Hues a golden section apart, in three steps of brightness, so that neighbours differ; grey below 0."""
    hue_HxW = owner_HxW * 0.618034 % 1
    value_HxW = np.array([0.9, 0.65, 0.45])[owner_HxW % 3]
    color_HxWx3 = hsv_to_rgb(np.stack([hue_HxW, np.full(owner_HxW.shape, 0.7), value_HxW], axis=-1))
    return np.where(owner_HxW[..., None] < 0, to_rgb(PALE), color_HxWx3)


EXPERIMENT = Experiment(
    question="Who may attend to whom?",
    answers="arXiv:2601.15506, the fractal mask",
    definition="The static mask: the share of pairs that may attend, between token groups. Between "
    "levels: how many fine cells a coarse cell is linked to, and the share of fine cells that are linked "
    "to the coarse cell that they lie in, and to no other.",
    tables={
        "Mask": "model | queries | keys | may attend, %",
        "Links between levels": "model | coarse | fine | fewest linked | most linked | linked as they lie, %",
    },
    measure=_measure,
    draw=_draw,
    compares="share of pairs that may attend, %",
)
