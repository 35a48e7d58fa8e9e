"""Whether a patch holds its position."""

import numpy as np

from vit_registers.analysis.experiments.halves import MANY_IMAGES, halves
from vit_registers.analysis.measures.position_probe import fit_position_probe, score_positions
from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.subject import Options, Subject

_FEWEST_IMAGES = 4  # two to train on, of which one chooses the strength


def position(subjects: list[Subject], options: Options) -> Result:
    """Whether a patch still knows where it is."""
    rows, gaps = [], []
    for subject in subjects:
        patches = subject.store.read("patches_PxD")
        train, test = halves(len(patches))
        if len(patches) < _FEWEST_IMAGES:
            gaps.append(f"{subject.name}: the probe wants {_FEWEST_IMAGES} images or more")
            continue
        probe = fit_position_probe(np.asarray(patches[train]), seed=0)
        is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
        scores = score_positions(probe, patches[test], is_outlier, grid=subject.layout.patch_grid)
        for score in scores:
            top1 = None if score.top1 is None else 100 * score.top1
            rows.append((subject.name, score.kind, score.num_tokens, top1, score.distance_patches))
            if not score.num_tokens:
                gaps.append(f"{subject.name}: no {score.kind} patches by {options.rule}")
        if not probe.is_converged:
            gaps.append(f"{subject.name}: the probe had not converged")
    columns = ("model", "patches", "tokens", "top-1, %", "distance, patches")
    return Result(
        definition="One linear softmax classifier over the positions, on the patches that the last block "
        f"leaves, trained on half of the images and scored on the other half ({MANY_IMAGES} at most), on "
        "flagged and on other patches. Distance is Euclidean, from the position answered to the true one.",
        tables=[Table(title="Position probe", columns=columns, rows=rows)] if rows else [],
        gaps=gaps,
    )
