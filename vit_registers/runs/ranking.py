"""Which evaluations of a run may rank its checkpoints."""

import math
from collections.abc import Mapping


def find_non_finite(metrics: Mapping[str, float | None]) -> str | None:
    """What of an evaluation is not finite, in a few words; None where everything is.

    Such an evaluation is never the best of a run. `metrics` are those of one evaluator, with None for a
    number that was not finite, as JSON has it. An evaluator may count the examples whose output is not finite
    as "non_finite" of "images".
    """
    if number := metrics.get("non_finite"):
        return f"the logits of {number:g} of {metrics['images']:g} images are not finite; they count as wrong"
    for name, value in metrics.items():
        if value is None or not math.isfinite(value):
            return f"the {name} is not finite"
    return None
