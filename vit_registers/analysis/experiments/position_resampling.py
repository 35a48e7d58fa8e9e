"""position-resampling: how much each cell of a position table counts once it is resampled."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Gap, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject
from vit_registers.models.positions import position_rule
from vit_registers.models.resampling import axis_matrices
from vit_registers.models.tokens import Grid
from vit_registers.models.vit import token_layout

_SMALLER = 7 / 16  # of the side, as in the paper's 16 x 16 to 7 x 7

Case = tuple[Grid, Grid, tuple[str, ...]]  # from, to, methods


def counts(source: Grid, target: Grid, method: str) -> np.ndarray:
    """weight_HxW of the cells of grid `source`, mean 1: the gradient of the sum of the resampled table.

    Each cell of grid `target` gets a gradient of 1, which goes back to the cells that it was made of, as in
    arXiv:2309.16588, appendix A and figure 11 (16 x 16 to 7 x 7, and the gradient back). Ours is divided by
    its mean. A cell of weight 0 has no effect at the other size. Resampling is linear and separable, so that
    the gradient is an outer product of the gradients of rows and of columns.
    """
    row_H, column_W = (matrix.sum(axis=0) for matrix in axis_matrices(source, target, method))
    weight_HxW = np.outer(row_H, column_W)
    return weight_HxW / weight_HxW.mean()


def other_grid(source: Grid, shown: Grid) -> Grid:
    """The grid of the images where it differs from that of training; else 7/16 of each side, at least 2.

    It is one larger where that is half of the side, as plain bicubic weights all cells equally at half the
    side, and at no other size.
    """
    if shown != source:
        return shown
    smaller = (max(2, round(_SMALLER * side)) for side in source)
    rows, columns = (new + (2 * new == side) for new, side in zip(smaller, source, strict=True))
    return rows, columns


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    case = _case(subject)
    if isinstance(case, str):
        return Gap(f"{subject.name}: {case}")
    source, target, methods = case
    rows = []
    for method in methods:
        weight_HxW = counts(source, target, method)
        spread = float(weight_HxW.std() / weight_HxW.mean())
        is_own = "yes" if method == methods[0] else "no"
        ends = float(weight_HxW.min()), float(weight_HxW.max())
        rows.append((_text(source), _text(target), method, is_own, spread, *ends))
    *_, spread, low, high = rows[0]
    return Rows(
        tables={"Weight of positions": rows},
        text=f"{methods[0]} from {_text(source)} to {_text(target)} weights positions from {number(low)} to "
        f"{number(high)} of the mean (coefficient of variation {number(spread)})",
        compared=spread,
        count=counted(source[0] * source[1], "position"),
        values=case,
    )


def _case(subject: Subject) -> Case | str:
    model, rule = subject.model, position_rule(subject.model.positions)
    if rule.table is None and not rule.is_learned:
        return f"model.positions='{model.positions}' has no table"
    if model.position_resampling == "none":
        return "its table is computed for every size and not resampled (model.position_resampling='none')"
    source = token_layout(model).patch_grid
    target = other_grid(source, subject.layout.patch_grid)
    if source == target:
        return f"a grid of {_text(source)} cannot be made smaller"
    return source, target, tuple(dict.fromkeys((model.position_resampling, "bicubic_aa", "bicubic")))


def _text(grid: Grid) -> str:
    return f"{grid[0]} x {grid[1]}"


def _draw(found: Found) -> Pictures:
    cases: dict[Case, list[str]] = {}
    for one in found:
        cases.setdefault(one.values, []).append(one.name)
    for place, ((source, target, methods), names) in enumerate(cases.items(), start=1):
        maps = [counts(source, target, method) for method in methods]
        low, high = min(0.0, *(one.min() for one in maps)), max(one.max() for one in maps)
        figure = tiles(
            [[None] * len(maps)],
            [maps],
            rows=("",),
            columns=[method if i else f"{method}, its own" for i, method in enumerate(methods)],
            limits=(low, high),
            label="weight / mean",
        )
        caption = (
            f"{', '.join(names)}: what each cell of the table of {_text(source)} counts when it is resampled "
            f"to {_text(target)}."
        )
        yield Picture(name=f"resampling-{place}", caption=caption, figure=figure)


EXPERIMENT = Experiment(
    question="Do all positions count alike once the position table is resampled?",
    answers=f"{REGISTERS}, figure 11",
    definition="The position table of training is resampled to another grid: that of the images, or, "
    "where the two are equal, about 7/16 of each side (the paper's 16 x 16 to 7 x 7). Each cell of the "
    "result gets a gradient of 1; shown is what of it arrives at each cell of the table, over the mean. "
    "1 everywhere: all positions count alike; stripes: some hardly count, and others twice. bicubic_aa "
    "is with antialiasing; bicubic, bicubic_offset and linear are without.",
    tables={
        "Weight of positions": "model | trained grid | other grid | method | own | coefficient of variation"
        " | min | max"
    },
    measure=_measure,
    draw=_draw,
    compares="coefficient of variation of the weight of positions",
)
