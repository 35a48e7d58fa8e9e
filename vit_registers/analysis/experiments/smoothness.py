"""smoothness: how alike neighbouring patches are after the last block."""

from vit_registers.analysis.experiments.experiment import SEVERITY
from vit_registers.analysis.experiments.neighbours import AFTER_LAST, cosine_experiment

EXPERIMENT = cosine_experiment(
    question="How smooth are the features that come out?",
    answers=SEVERITY,
    feature=AFTER_LAST,
    what="What the last block leaves, before the final norm",
)
