"""probe-position: whether patches and outliers hold their position."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment, few
from vit_registers.analysis.experiments.train_test import MANY_IMAGES, random_parts
from vit_registers.analysis.measures.position_probe import fit_position_probe, score_positions
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows, counted, number, percent
from vit_registers.analysis.subject import Subject

_FEWEST_IMAGES = 4  # two to train on, of which one chooses the strength


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    parts = random_parts(subject, "patches_PxD")
    (trained, train, _), (_, test, _) = parts
    if len(train) < _FEWEST_IMAGES // 2 or not len(test):
        return Gap(f"{subject.name}: the probe requires {_FEWEST_IMAGES} images or more")
    probe = fit_position_probe(np.asarray(trained.store.read("patches_PxD")[train]), seed=0)
    patches = subject.store.read("patches_PxD")
    is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
    scores = score_positions(probe, patches[test], is_outlier, grid=subject.layout.patch_grid)
    rows = [(one.kind, one.num_tokens, percent(one.top1), one.distance_patches) for one in scores]
    gaps = [f"{subject.name}: no {kind} patches by {options.rule}" for kind, count, *_ in rows if not count]
    if not probe.is_converged:
        gaps.append(f"{subject.name}: the probe did not converge")
    (_, num_normal, normal, _), (_, num_outliers, outlier, _) = rows
    return Rows(
        tables={"Position probe": rows},
        text=f"a linear probe finds the position of {number(normal, '%')} of {num_normal:,} normal patches "
        f"and of {number(outlier, '%')} of {num_outliers:,} outliers",
        compared=normal,
        count=counted(len(test), "image"),
        gaps=gaps,
        cautions=few(subject.name, num_outliers, "outlier"),
        images=parts.describe(),
    )


EXPERIMENT = Experiment(
    question="Do patches know where they are, and outliers too?",
    answers=f"{REGISTERS}, figure 5b and table 5",
    definition="One linear softmax classifier over the positions, on the patches that the last block "
    f"leaves, trained on half of the images and scored on the other half ({MANY_IMAGES} at most of each), or "
    "trained on images of --train_data, on "
    "flagged and on other patches. Distance is Euclidean, from the position answered to the true one.",
    tables={"Position probe": "model | patches | tokens | top-1, % | distance, patches"},
    measure=_measure,
    features=("norms_LxT", "patches_PxD"),
    trains=True,
    compares="top-1 of the position of normal patches, %",
)
