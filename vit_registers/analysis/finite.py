"""Which features hold values that are not finite: those of a model that cannot be measured."""

from collections.abc import Iterable

import numpy as np

from vit_registers.analysis.forward import FEATURES
from vit_registers.analysis.store import Store
from vit_registers.analysis.subject import in_parts
from vit_registers.errors import DataError


class NotFiniteError(DataError):
    """Features of the model named `model` that are not finite; experiments give a gap for that model."""

    def __init__(self, model: str, what: str) -> None:
        super().__init__(f"{model}: {what}")
        self.model = model


def not_finite(store: Store, names: Iterable[str]) -> str | None:
    """What to say of those of the features `names` that are not finite in an image; None: all are finite.

    NaN counts, except in a feature where it marks what is not defined.
    """
    is_flawed_B, flawed = np.zeros(store.num_read(), bool), []
    for name in names:
        values = store.read(name)
        is_wrong = np.isinf if FEATURES[name].has_undefined else lambda part: ~np.isfinite(part)
        for images in in_parts(len(values)):
            part = values[images].reshape(len(values[images]), -1)
            is_wrong_B = is_wrong(part).any(axis=1)
            is_flawed_B[images] |= is_wrong_B
            if is_wrong_B.any() and name not in flawed:
                flawed.append(name)
    if not flawed:
        return None
    return describe(", ".join(flawed), np.count_nonzero(is_flawed_B), len(is_flawed_B))


def describe(names: str, number: int, total: int) -> str:
    """The words for features that are not finite in `number` of `total` images."""
    return f"the features {names} hold values that are not finite ({number} of {total} images)"
