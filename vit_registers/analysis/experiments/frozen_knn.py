"""frozen-knn: nearest neighbours in frozen features of the unedited and of edited models."""

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import Experiment
from vit_registers.analysis.experiments.frozen_features import EDITS, compare_variants
from vit_registers.analysis.measures.nearest import knn_right
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows
from vit_registers.analysis.subject import Subject

NEIGHBORS = 20  # of DINO's and DINOv2's protocol, the number whose accuracy they report first
_TABLE = "k-NN of edited models"


def knn_share(
    train_NxD: np.ndarray, train_label_N: np.ndarray, test_MxD: np.ndarray, test_label_M: np.ndarray
) -> float:
    """The share of test images, in %, to which the vote of the nearest NEIGHBORS gives their label."""
    right = knn_right(
        train_NxD,
        train_label_N,
        test_MxD,
        test_label_M,
        num_classes=int(max(train_label_N.max(), test_label_M.max())) + 1,
        neighbors=(NEIGHBORS,),
    )
    return 100 * float(right[NEIGHBORS].mean())


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    return compare_variants(
        subject, options, lambda kind, *arrays: knn_share(*arrays), what="k-NN", table=_TABLE
    )


EXPERIMENT = Experiment(
    question="Do registers at test time, or the removal of outliers, change what neighbours say?",
    answers="arXiv:2304.07193, k-NN; arXiv:2506.08010, test-time registers",
    definition=lambda options: (
        f"The class by the weighted vote of the {NEIGHBORS} nearest training images, by cosine, as DINOv2 "
        "measures it, from cls and from the mean patch after the final norm. Half of each class is the bank "
        f"and half is tested, of the first {options.num_edited} images; with --train_data the first of its "
        f"images are the bank. {EDITS} The standard error is that of a proportion."
    ),
    tables={_TABLE: "model | features | edit | top-1, % | standard error | trained on | tested on"},
    measure=_measure,
    features=(*edited_models.BASE, edited_models.FROZEN),
    runs_model=True,
    trains=True,
    compares="k-NN top-1 of the unedited model, %",
)
