"""probe-position-by-layer: after which blocks patches hold their position."""

import numpy as np
from matplotlib.axes import Axes

from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.train_test import random_parts
from vit_registers.analysis.features.table import LIMITS, depths_shown
from vit_registers.analysis.measures.position_probe import fit_position_probe, score_positions
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.figures import integer_ticks, legend_name, overlay_picture
from vit_registers.analysis.report.result import Gap, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject

_FEATURE = "patches_SxPxD"
_FEWEST_IMAGES = 4  # two to train on, of which one chooses the strength


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    parts = random_parts(subject, _FEATURE)
    (trained, train, _), (tested, test, _) = parts
    if len(train) < _FEWEST_IMAGES // 2 or not len(test):
        return Gap(f"{subject.name}: the probe requires {_FEWEST_IMAGES} images or more")
    depths = depths_shown(subject.store.read("norms_LxT").shape[1] - 1)
    rows, gaps = [], []
    for place, depth in enumerate(depths):
        train_BxPxD, test_BxPxD = (
            np.asarray(part.store.read(_FEATURE)[own, place])
            for part, own in ((trained, train), (tested, test))
        )
        probe = fit_position_probe(train_BxPxD, seed=0)
        none_BxP = np.zeros(test_BxPxD.shape[:2], bool)
        score, _ = score_positions(probe, test_BxPxD, none_BxP, grid=subject.layout.patch_grid)
        rows.append((depth, len(test), percent(score.top1), score.distance_patches))
        if not probe.is_converged:
            gaps.append(f"{subject.name}: the probe after block {depth} did not converge")
    top1 = [row[2] for row in rows]
    return Rows(
        tables={"Position probe by layer": rows},
        text=f"a linear probe finds the position of {number(top1[0], '%')} of the patches before the first "
        f"block and of {number(top1[-1], '%')} after the last",
        compared=top1[-1],
        count=counted(len(test), "image"),
        values=(depths, top1),
        gaps=gaps,
        images=parts.describe(),
    )


def _draw(axes: Axes, values: tuple[list[int], list[float]], color: str, model: str) -> None:
    axes.plot(*values, "o-", ms=3, color=color, label=legend_name(model))
    axes.set(xlabel="after block", ylabel="top-1 of the position, %")
    integer_ticks(axes)


EXPERIMENT = Experiment(
    question="After which blocks do patches hold their position?",
    answers="arXiv:2309.16588, figure 5b, in every block; arXiv:2601.15506: whether a mask gives position",
    definition="The classifier of probe-position, fitted on all patches before the first block (0) "
    "and after blocks, at seven depths at most. Trained on half of the images and "
    f"scored on the other half ({LIMITS[_FEATURE]} in all), or trained on images of --train_data. Chance is "
    "100 % over the number of patches. Distance is Euclidean, from the position answered to the true one.",
    tables={"Position probe by layer": "model | after block | images | top-1, % | distance, patches"},
    measure=_measure,
    features=("norms_LxT", _FEATURE),
    trains=True,
    draw=overlay_picture(
        "probe-position-by-layer",
        "Top-1 of a linear classifier of the position, by the block after which patches are read.",
        _draw,
    ),
    compares="top-1 of the position after the last block, %",
)
