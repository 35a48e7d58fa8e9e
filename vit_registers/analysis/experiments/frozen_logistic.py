"""frozen-logistic: a linear classifier of frozen features of the unedited and of edited models."""

from collections.abc import Sequence

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.experiment import REGISTERS, Experiment
from vit_registers.analysis.experiments.frozen_features import EDITS, compare_variants
from vit_registers.analysis.measures.probes import STRENGTHS, logistic_probe
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.result import Gap, Rows
from vit_registers.analysis.subject import Subject
from vit_registers.errors import DataError

_TABLE = "Logistic regression of edited models"


def logistic_share(
    train_NxD: np.ndarray, train_label_N: np.ndarray, test_MxD: np.ndarray, test_label_M: np.ndarray
) -> float | None:
    """The share of test images, in %, whose class it finds; None if no strength can be chosen."""
    try:
        return 100 * logistic_probe(train_NxD, train_label_N, test_MxD, test_label_M, seed=0).accuracy
    except DataError:
        return None


def _measure(subject: Subject, options: Options) -> Rows | Gap:
    return compare_variants(subject, options, _Scorer(), what="logistic regression", table=_TABLE)


class _Scorer:
    """The accuracy with the C that was chosen for the first features of each kind, the unedited ones.

    On as few images another C would move the accuracy more than an edit does.
    """

    def __init__(self) -> None:
        self._strengths: dict[str, Sequence[float]] = {}

    def __call__(self, kind: str, *arrays: np.ndarray) -> float | None:
        try:
            found = logistic_probe(*arrays, strengths=self._strengths.get(kind, STRENGTHS), seed=0)
        except DataError:
            return None
        self._strengths[kind] = (found.strength,)
        return 100 * found.accuracy


EXPERIMENT = Experiment(
    question="Do registers at test time, or the removal of outliers, change what a linear classifier finds?",
    answers=f"{REGISTERS}, table 2a; arXiv:2506.08010, test-time registers",
    definition=lambda options: (
        "Multinomial logistic regression from cls, and from the mean patch, after the final norm, "
        f"standardised; C is one of {len(STRENGTHS)} powers of ten, chosen for the unedited model on a fifth "
        "of the training part, and is the same for edited models; "
        f"trained on half of each class and tested on the other half, of the first {options.num_edited} "
        f"images; with --train_data trained on the first of its images. {EDITS} The standard error is that "
        "of a proportion."
    ),
    tables={_TABLE: "model | features | edit | accuracy, % | standard error | trained on | tested on"},
    measure=_measure,
    features=(*edited_models.BASE, edited_models.FROZEN),
    runs_model=True,
    trains=True,
    compares="accuracy of logistic regression of the unedited model, %",
)
