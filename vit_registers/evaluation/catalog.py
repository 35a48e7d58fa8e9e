"""The kinds of evaluators, and which of them a config has."""

from collections.abc import Mapping

import jax

from vit_registers.config import Config
from vit_registers.data.loaders import EvalSplit
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.evaluation.classification import CLASSIFICATION

# The first evaluator of a config, in this order, ranks the checkpoints.
EVALUATORS: dict[str, EvaluatorKind] = {"classification": CLASSIFICATION}


def has_evaluators(config: Config) -> bool:
    """Whether make_evaluators returns any."""
    return any(kind.is_for(config) for kind in EVALUATORS.values())


def make_evaluators(
    config: Config, splits: Mapping[str, EvalSplit], mesh: jax.sharding.Mesh
) -> dict[str, Evaluator]:
    """All evaluators that `config` has on `splits`, by their name in metrics.jsonl."""
    made: dict[str, Evaluator] = {}
    for kind in EVALUATORS.values():
        if kind.is_for(config):
            made |= kind.make(config, splits, mesh)
    return made
