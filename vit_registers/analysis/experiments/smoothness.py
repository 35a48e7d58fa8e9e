"""How smooth the patches are after the last block. No JAX."""

from vit_registers.analysis.experiments.neighbour_panels import split_cosines
from vit_registers.analysis.report.result import Result
from vit_registers.analysis.subject import Options, Subject


def smoothness(subjects: list[Subject], options: Options) -> Result:
    """Cosines between neighbouring patches after the last block, around outliers and elsewhere."""
    return split_cosines(
        subjects, options, "output_cosine_4xP", "What the last block leaves, before the final norm"
    )
