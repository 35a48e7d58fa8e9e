"""Whether outliers appear where patches are like their neighbours. No JAX."""

from vit_registers.analysis.experiments.neighbour_panels import split_cosines
from vit_registers.analysis.report.result import Result
from vit_registers.analysis.subject import Options, Subject


def neighbours(subjects: list[Subject], options: Options) -> Result:
    """Cosines between neighbouring patches at the patch embedding, around outliers and elsewhere."""
    return split_cosines(
        subjects,
        options,
        "embed_cosine_4xP",
        "What leaves the patch embedding, before positions are added",
    )
