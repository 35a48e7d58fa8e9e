"""smoothness: how alike neighbouring patches are after the last block."""

from vit_registers.analysis.experiments.experiment import SEVERITY
from vit_registers.analysis.experiments.neighbours import cosine_experiment

EXPERIMENT = cosine_experiment(
    question="How smooth are the features that come out?",
    answers=SEVERITY,
    feature="output_cosine_4xP",
    what="What the last block leaves, before the final norm",
)
