"""neighbours: whether outliers appear where patches are like their neighbours at the patch embedding."""

from vit_registers.analysis.experiments.neighbour_panels import cosine_experiment
from vit_registers.analysis.published.tables import REGISTERS, SMALL

EXPERIMENT = cosine_experiment(
    question="Do outliers appear where patches are like their neighbours?",
    answers=f"{REGISTERS}, figure 5a; {SMALL}, figure 6",
    feature="embed_cosine_4xP",
    what="What leaves the patch embedding, before positions are added",
)
