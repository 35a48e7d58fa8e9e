"""probe-reconstruction: whether patches and outliers hold their pixels."""

import numpy as np

from vit_registers.analysis.experiments.experiment import REGISTERS, SMALL, Experiment, few
from vit_registers.analysis.experiments.train_test import MANY_IMAGES, random_parts
from vit_registers.analysis.measures import reconstruction
from vit_registers.analysis.measures.released import fit_released, score_released
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows, counted, number
from vit_registers.analysis.subject import Subject


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    parts = random_parts(subject, "patches_PxD")
    test = parts.test.row_N
    if not len(test) or not len(parts.train.row_N):
        return Gap(f"{subject.name}: the probes require two images or more, one of them to test on")
    fitted, scored = (
        reconstruction.Pairs(
            token_BxPxD=np.asarray(part.subject.store.read("patches_PxD")[part.row_N]),
            image_BxHxWxC=np.asarray(part.subject.store.read("image_HxWxC")[part.row_N]),
            patch_size=subject.model.patch_size,
            mean=subject.mean,
            std=subject.std,
        )
        for part in parts
    )
    is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
    score = reconstruction.score_reconstruction
    probes = {
        "none (mean patch)": (reconstruction.fit_mean(fitted), score),
        "linear": (reconstruction.fit_linear(fitted), score),
        "MLP": (reconstruction.fit_mlp(fitted, seed=0), score),
        "MLP, as released": (fit_released(fitted, seed=0), score_released),
    }
    rows = [
        (name, one.kind, one.num_tokens, one.mse, one.l2)
        for name, (probe, score_of) in probes.items()
        for one in score_of(probe, scored, is_outlier)
    ]
    normal, outlier = (row for row in rows if row[0] == "linear")
    return Rows(
        tables={"Reconstruction": rows},
        text=f"the squared error of the linear probe is {number(normal[3])} per pixel value of {normal[2]:,} "
        f"normal patches and {number(outlier[3])} of {outlier[2]:,} outliers",
        compared=normal[3],
        count=counted(len(test), "image"),
        gaps=[] if is_outlier.any() else [f"{subject.name}: no outliers by {options.rule}"],
        cautions=few(subject.name, int(is_outlier.sum()), "outlier"),
        images=parts.describe(),
    )


EXPERIMENT = Experiment(
    question="Do patches know their pixels, and outliers too?",
    answers=f"{REGISTERS}, figure 5b and table 5; {SMALL}, section 4.2.1",
    definition="From a patch that the last block leaves to its pixels, normalised as the model is shown "
    "them: ridge regression, and an MLP with a hidden layer of 4 x the width; trained on half of the "
    f"images and scored on the other half ({MANY_IMAGES} at most of each), or trained on images of "
    "--train_data. 'As released' is what the code of "
    "'Registers in Small Vision Transformers' computes: targets that are no patches, and sums over "
    "batches of 64 images instead of means, so that its numbers can be compared with each other only.",
    tables={
        "Reconstruction": "model | probe | patches | tokens | squared error per value | L2 error per patch"
    },
    measure=_measure,
    features=("norms_LxT", "patches_PxD", "image_HxWxC"),
    trains=True,
    compares="squared error of the linear probe on normal patches",
)
