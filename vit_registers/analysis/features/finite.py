"""Finds features with values that are not finite: such a model cannot be measured."""

from collections.abc import Iterable

import numpy as np

from vit_registers.analysis.features.store import Store
from vit_registers.analysis.features.table import FEATURES
from vit_registers.analysis.subject import in_parts
from vit_registers.errors import DataError


class NotFiniteError(DataError):
    """Features of the model named `model` that are not finite; experiments give a gap for that model."""

    def __init__(self, model: str, what: str) -> None:
        super().__init__(f"{model}: {what}")
        self.model = model


def not_finite(store: Store, names: Iterable[str]) -> str | None:
    """A description of those of the features `names` that are not finite; None if all are finite."""
    is_flawed_B, flawed = np.zeros(store.num_read(), bool), []
    for name in names:
        if name not in store.is_flawed:  # read once, whatever the number of experiments
            store.is_flawed[name] = _is_flawed(store.read(name), FEATURES[name].has_undefined)
        own_B = store.is_flawed[name]
        is_flawed_B[: len(own_B)] |= own_B
        flawed += [name] if own_B.any() else []
    if not flawed:
        return None
    return describe_not_finite(", ".join(flawed), int(np.count_nonzero(is_flawed_B)), len(is_flawed_B))


def _is_flawed(values: np.ndarray, has_undefined: bool) -> np.ndarray:
    """Whether each image has a value that is not finite; NaN is ignored if it marks undefined values."""
    is_flawed_B = np.zeros(len(values), bool)
    for images in in_parts(len(values)):
        part = values[images].reshape(len(values[images]), -1)
        is_flawed_B[images] = (np.isinf(part) if has_undefined else ~np.isfinite(part)).any(axis=1)
    return is_flawed_B


def describe_not_finite(names: str, number: int, total: int) -> str:
    """The description of features that are not finite in `number` of `total` images."""
    return f"the features {names} hold values that are not finite ({number} of {total} images)"
