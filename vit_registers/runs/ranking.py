"""Decides which evaluations of a run may rank its checkpoints."""

import math
from collections.abc import Mapping


def find_non_finite(metrics: Mapping[str, float | None]) -> str | None:
    """A text that names what is not finite in an evaluation; None if all metrics are finite.

    Such an evaluation is never the best of a run. `metrics` are those of one evaluator; None is a number that
    is not finite, as in JSON. "non_finite", if present, is how many of the "images" have outputs that are not
    finite.
    """
    if number := metrics.get("non_finite"):
        return f"the logits of {number:g} of {metrics['images']:g} images are not finite; they count as wrong"
    for name, value in metrics.items():
        if value is None or not math.isfinite(value):
            return f"the {name} is not finite"
    return None
