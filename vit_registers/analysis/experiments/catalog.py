"""All experiments by group and by the name of the command line, which the file of an experiment has too."""

from collections.abc import Iterable

from vit_registers.analysis.experiments import (
    accuracy,
    attention_bias,
    attention_by_layer,
    attention_maps,
    attention_over_training,
    attention_shares,
    background_variance,
    cls_by_layer,
    cls_patches_only,
    cls_terms,
    cls_terms_by_layer,
    components,
    cost,
    curves,
    feature_spread,
    focus_over_training,
    frozen_heads,
    frozen_knn,
    frozen_logistic,
    frozen_tasks,
    image_complexity,
    lost,
    mask,
    neighbours,
    norms,
    norms_by_layer,
    norms_by_position,
    norms_by_size,
    one_shot,
    outliers_by_registers,
    over_training,
    position_resampling,
    positional_focus,
    probe_global,
    probe_position,
    probe_position_by_layer,
    probe_reconstruction,
    prototype_use,
    register_activations,
    register_neurons,
    registers_sweep,
    remove_outliers,
    retrieval,
    self_distillation,
    shuffled_patches,
    skip_and_registers,
    smoothness,
    test_time_registers,
    variance,
    zero_shot,
    zero_shot_segmentation,
)
from vit_registers.analysis.experiments.experiment import Experiment

GROUPS: dict[str, dict[str, Experiment]] = {
    "Training and accuracy": {
        "curves": curves.EXPERIMENT,
        "self-distillation": self_distillation.EXPERIMENT,
        "feature-spread": feature_spread.EXPERIMENT,
        "prototype-use": prototype_use.EXPERIMENT,
        "accuracy": accuracy.EXPERIMENT,
        "over-training": over_training.EXPERIMENT,
        "attention-over-training": attention_over_training.EXPERIMENT,
        "focus-over-training": focus_over_training.EXPERIMENT,
        "cost": cost.EXPERIMENT,
    },
    "What features are good for": {
        "frozen-tasks": frozen_tasks.EXPERIMENT,
        "registers-sweep": registers_sweep.EXPERIMENT,
        "frozen-knn": frozen_knn.EXPERIMENT,
        "frozen-logistic": frozen_logistic.EXPERIMENT,
        "frozen-heads": frozen_heads.EXPERIMENT,
    },
    "Images and texts": {
        "zero-shot": zero_shot.EXPERIMENT,
        "retrieval": retrieval.EXPERIMENT,
        "zero-shot-segmentation": zero_shot_segmentation.EXPERIMENT,
    },
    "Attention": {
        "attention-maps": attention_maps.EXPERIMENT,
        "positional-focus": positional_focus.EXPERIMENT,
        "attention-shares": attention_shares.EXPERIMENT,
        "attention-by-layer": attention_by_layer.EXPERIMENT,
        "mask": mask.EXPERIMENT,
    },
    "Norms and outliers": {
        "norms": norms.EXPERIMENT,
        "norms-by-layer": norms_by_layer.EXPERIMENT,
        "norms-by-size": norms_by_size.EXPERIMENT,
        "outliers-by-registers": outliers_by_registers.EXPERIMENT,
        "norms-by-position": norms_by_position.EXPERIMENT,
        "image-complexity": image_complexity.EXPERIMENT,
        "neighbours": neighbours.EXPERIMENT,
        "smoothness": smoothness.EXPERIMENT,
        "variance": variance.EXPERIMENT,
    },
    "What patches and tokens hold": {
        "components": components.EXPERIMENT,
        "position-resampling": position_resampling.EXPERIMENT,
        "probe-position": probe_position.EXPERIMENT,
        "probe-position-by-layer": probe_position_by_layer.EXPERIMENT,
        "probe-reconstruction": probe_reconstruction.EXPERIMENT,
        "probe-global": probe_global.EXPERIMENT,
    },
    "What cls is made of": {
        "cls-terms": cls_terms.EXPERIMENT,
        "cls-terms-by-layer": cls_terms_by_layer.EXPERIMENT,
        "cls-by-layer": cls_by_layer.EXPERIMENT,
        "skip-and-registers": skip_and_registers.EXPERIMENT,
        "one-shot": one_shot.EXPERIMENT,
        "cls-patches-only": cls_patches_only.EXPERIMENT,
        "register-activations": register_activations.EXPERIMENT,
    },
    "Edited models": {
        "remove-outliers": remove_outliers.EXPERIMENT,
        "register-neurons": register_neurons.EXPERIMENT,
        "test-time-registers": test_time_registers.EXPERIMENT,
        "attention-bias": attention_bias.EXPERIMENT,
        "shuffled-patches": shuffled_patches.EXPERIMENT,
    },
    "Objects": {
        "lost": lost.EXPERIMENT,
        "background-variance": background_variance.EXPERIMENT,
    },
}
EXPERIMENTS: dict[str, Experiment] = {name: one for group in GROUPS.values() for name, one in group.items()}


def reads_texts(names: Iterable[str]) -> bool:
    """Whether one of these experiments requires the text tower of a model."""
    return any(EXPERIMENTS[name].needs_text_tower for name in names)


def group_of(name: str) -> str:
    """The group of an experiment."""
    return next(group for group, members in GROUPS.items() if name in members)


def markdown_table() -> str:
    """The table of all experiments in docs/experiments.md."""
    rows = [f"| `{name}` | {one.question} | {one.answers} |" for name, one in EXPERIMENTS.items()]
    return "\n".join(["| name | asks | answers |", "| --- | --- | --- |", *rows]) + "\n"
