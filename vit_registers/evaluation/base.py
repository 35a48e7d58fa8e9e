"""The contract of an evaluator, and what evaluators are made from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from vit_registers.config import Data, Model, ObjectiveSettings
from vit_registers.data.loaders import EvalSplit


class Evaluator(Protocol):
    """Measures parameters, with the backbone under objectives.base.BACKBONE. Used by train and evaluate."""

    def __call__(self, params: Any) -> dict[str, float]:
        """{name: value} of the parameters, the same on all processes."""
        ...


class EvaluatorKind(NamedTuple):
    """A kind of evaluators: which configs have it, and how its evaluators are made."""

    is_for: Callable[[ObjectiveSettings, Model], bool]
    # (objective, model, data, {name: split}, mesh) -> {name in metrics.jsonl: evaluator}
    make: Callable[
        [ObjectiveSettings, Model, Data, Mapping[str, EvalSplit], jax.sharding.Mesh],
        Mapping[str, Evaluator],
    ]
