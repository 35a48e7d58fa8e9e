"""The neurons that make the outliers of a model (arXiv:2506.08010, algorithm 1)."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.features.interventions import Intervention, nothing
from vit_registers.analysis.measures.neurons import first_block, highest, neuron_scores
from vit_registers.analysis.subject import Options, Subject


class RegisterNeurons(NamedTuple):
    """The neurons of one model that are most active on outliers. Blocks and neurons count from 0."""

    threshold: float
    is_outlier_BxP: np.ndarray
    num_images: int  # with outliers
    last_block: int  # where outliers begin; neurons after it are not looked at
    score_LxF: np.ndarray
    others_LxF: np.ndarray | None  # None: all patches are outliers
    neuron_Ex2: np.ndarray  # the highest score first


def find_neurons(subject: Subject, options: Options) -> RegisterNeurons | None:
    """The neurons, ranked by their activation on outliers; None where there are no outliers."""
    is_outlier_BxP, threshold = edited_models.flagged(subject, options)
    has_outlier_B, has_other_B = np.atleast_1d(is_outlier_BxP.any(1)), np.atleast_1d((~is_outlier_BxP).any(1))
    if threshold is None or not has_outlier_B.any():
        return None
    intervention = Intervention(
        name="neurons", edits=nothing, values={}, rows={"is_outlier_BxP": is_outlier_BxP}
    )
    store = edited_models.edited(subject, options, intervention, ("neurons_2xLxF",))
    score_LxF, others_LxF = neuron_scores(store.read("neurons_2xLxF"), has_outlier_B, has_other_B)
    norm_BxLxP = subject.store.read("norms_LxT")[: options.num_edited, :, subject.layout.patches]
    last_block = first_block(norm_BxLxP, is_outlier_BxP, threshold)
    return RegisterNeurons(
        threshold=threshold,
        is_outlier_BxP=is_outlier_BxP,
        num_images=int(has_outlier_B.sum()),
        last_block=last_block,
        score_LxF=score_LxF,
        others_LxF=others_LxF,
        neuron_Ex2=highest(score_LxF, last_block),
    )
