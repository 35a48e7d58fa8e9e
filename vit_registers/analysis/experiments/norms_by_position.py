"""norms-by-position: how often each position of the image holds an outlier. No JAX."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Found, Picture, Pictures, Rows, counted, number
from vit_registers.analysis.report.tiles import tiles
from vit_registers.analysis.subject import Subject


def _measure(subject: Subject, options: Options) -> Rows:
    found = subject.outliers(options.rule)
    share_HxW = found.is_outlier_BxP.mean(0).reshape(subject.layout.patch_grid)
    is_border_HxW = np.ones(share_HxW.shape, bool)
    is_border_HxW[1:-1, 1:-1] = False
    inner = float(100 * share_HxW[~is_border_HxW].mean()) if (~is_border_HxW).any() else None
    highest, border = 100 * float(share_HxW.max()), 100 * float(share_HxW[is_border_HxW].mean())
    return Rows(
        tables={"Outliers by position": [(highest, border, inner)]},
        text=f"a position holds an outlier in {number(highest, '%')} of the images at most, in "
        f"{number(border, '%')} at the border and {number(inner, '%')} inside, on average",
        compared=highest,
        count=counted(len(found.is_outlier_BxP), "image"),
        values=100 * share_HxW,
        gaps=[] if found.is_outlier_BxP.any() else [f"{subject.name}: no outliers by {options.rule}"],
    )


def _draw(found: Found) -> Pictures:
    maps = [one.values for one in found]
    figure = tiles(
        [[None] * len(maps)],
        [maps],
        rows=("",),
        columns=[one.name for one in found],
        limits=(0.0, max(float(one.max()) for one in maps) or 1.0),
        label="images with an outlier here, %",
    )
    caption = "How many images have an outlier at each position of the image, on one scale for all models."
    return [Picture(name="positions", caption=caption, figure=figure)]


EXPERIMENT = Experiment(
    question="Where in the image are outliers?",
    answers=f"{REGISTERS}, figure 10",
    definition="The share of images whose patch at a position is an outlier by the rule chosen.",
    tables={"Outliers by position": "model | most frequent position, % | at the border, % | inside, %"},
    measure=_measure,
    features=("norms_LxT",),
    draw=_draw,
    compares="share of images with an outlier at the most frequent position, %",
)
