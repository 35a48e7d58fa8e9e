"""Whether a patch holds its pixels."""

import numpy as np

from vit_registers.analysis.experiments.halves import MANY_IMAGES, halves
from vit_registers.analysis.measures.reconstruction import (
    Pairs,
    fit_linear,
    fit_mean,
    fit_mlp,
    score_reconstruction,
)
from vit_registers.analysis.measures.released import fit_released, score_released
from vit_registers.analysis.report.result import Result, Table
from vit_registers.analysis.subject import Options, Subject


def reconstruction(subjects: list[Subject], options: Options) -> Result:
    """Whether a patch still knows its pixels."""
    rows, gaps = [], []
    for subject in subjects:
        train, test = halves(len(subject.store.read("patches_PxD")))
        if not len(test):
            gaps.append(f"{subject.name}: the probes want two images or more, one of them to be judged by")
            continue
        fitted, scored = (_pairs(subject, images) for images in (train, test))
        is_outlier = subject.outliers(options.rule).is_outlier_BxP[test]
        probes = {
            "none (mean patch)": (fit_mean(fitted), score_reconstruction),
            "linear": (fit_linear(fitted), score_reconstruction),
            "MLP": (fit_mlp(fitted, seed=0), score_reconstruction),
            "MLP, as released": (fit_released(fitted, seed=0), score_released),
        }
        for name, (probe, score_of) in probes.items():
            for score in score_of(probe, scored, is_outlier):
                rows.append((subject.name, name, score.kind, score.num_tokens, score.mse, score.l2))
        if not is_outlier.any():
            gaps.append(f"{subject.name}: no outliers by {options.rule}")
    columns = ("model", "probe", "patches", "tokens", "squared error per value", "L2 error per patch")
    return Result(
        definition="From a patch that the last block leaves to its pixels, normalised as the model is shown "
        "them: ridge regression, and an MLP with a hidden layer of 4 x the width; trained on half of the "
        f"images and scored on the other half ({MANY_IMAGES} at most). 'As released' is what the code of "
        "'Registers in Small Vision Transformers' computes: targets that are no patches, and sums over "
        "batches of 64 images instead of means, so that its numbers can be compared with each other only.",
        tables=[Table(title="Reconstruction", columns=columns, rows=rows)] if rows else [],
        gaps=gaps,
    )


def _pairs(subject: Subject, images: np.ndarray) -> Pairs:
    return Pairs(
        token_BxPxD=np.asarray(subject.store.read("patches_PxD")[images]),
        image_BxHxWxC=np.asarray(subject.store.read("image_HxWxC")[images]),
        patch_size=subject.model.patch_size,
        mean=subject.mean,
        std=subject.std,
    )
