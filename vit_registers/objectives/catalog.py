"""The objectives by name."""

from vit_registers.config import Config, lookup
from vit_registers.objectives.base import Best, Objective
from vit_registers.objectives.classification import Classification
from vit_registers.objectives.image_text.objective import ImageText
from vit_registers.objectives.language_model import LanguageModel
from vit_registers.objectives.self_distillation.objective import SelfDistillation

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "self_distillation": SelfDistillation,
    "image_text": ImageText,
    "language_model": LanguageModel,
}


def make_objective(config: Config) -> Objective:
    """The objective that objective.name selects. Raises ConfigError for an unknown name."""
    return lookup(OBJECTIVES, config.objective.name, "objective.name")(config)


def best_metric(name: str) -> Best:
    """The metric that ranks the checkpoints of an objective. Raises ConfigError for an unknown name."""
    return lookup(OBJECTIVES, name, "objective.name").best
