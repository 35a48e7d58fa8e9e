"""The interface of an evaluator, and that of a kind of evaluators."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from vit_registers.config import Data, Model, ObjectiveSettings
from vit_registers.data.loaders import EvalSplit


class Evaluator(Protocol):
    """Computes metrics of parameters, with the backbone under objectives.base.BACKBONE."""

    def __call__(self, params: Any) -> dict[str, float]:
        """{metric: value} of the parameters, equal on all processes."""
        ...


class EvaluatorKind(NamedTuple):
    """A kind of evaluators: which configs have it, and the function that makes them."""

    is_for: Callable[[ObjectiveSettings, Model], bool]
    # (objective, model, data, {name: split}, mesh) -> {name in metrics.jsonl: evaluator}
    make: Callable[
        [ObjectiveSettings, Model, Data, Mapping[str, EvalSplit], jax.sharding.Mesh],
        Mapping[str, Evaluator],
    ]
