"""The valid values of each setting, independent of the other settings: the table RULES.

Modules that define names, such as those of masks, check the settings that select them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vit_registers.config.tasks import DENSE_TASKS, IMAGE_TASKS

MAX_STEPS = 10**8  # learning rates are a table of this length
_MAX_INT = 2**31 - 1  # counts and shapes are int32 on the devices
_MAX_DEPTH = 1000  # tracing this many blocks takes half a minute
_MAX_PIXELS = 65_535  # of a side, as in JPEG
_MAX_SECONDS = 1e7  # 115 days; operating systems limit waits

Rule = Callable[[Any], str | None]  # what the value must be, if it is invalid; None if it is valid


def _at_least(least: int, most: int = _MAX_INT) -> Rule:
    def rule(value: int) -> str | None:
        if value < least:
            return f">= {least}"
        return None if value <= most else f"<= {most:,}"

    return rule


def _float32(value: float) -> float:
    """`value` rounded to float32: infinite above 3.4e38, and 0 below 1.2e-38 (subnormal)."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


def _number(value: float) -> str | None:
    return None if math.isfinite(_float32(value)) else "finite in float32"


def _not_negative(value: float) -> str | None:
    if not value >= 0.0:
        return ">= 0"
    return _number(value)


def _positive(value: float) -> str | None:
    if not value > 0.0:
        return "> 0"
    return _number(value) if _float32(value) > 0.0 else "> 0 in float32, that is >= 1.2e-38"


def _share(value: float) -> str | None:
    if not 0.0 <= value < 1.0:
        return ">= 0 and < 1"
    return None if _float32(value) < 1.0 else "< 1 in float32, such as 0.9999999"


def _part(value: float) -> str | None:
    return None if 0.0 < value < 1.0 else "> 0 and < 1"


def _probability(value: float) -> str | None:
    return None if 0.0 <= value <= 1.0 else ">= 0 and <= 1"


def _rate_share(value: float) -> str | None:
    return None if 0.0 < value <= 1.0 and _float32(value) > 0.0 else "> 0 and <= 1"


def _alpha(value: float) -> str | None:
    if value > 0.0 and _float32(value) == 0.0:
        return "0 for no mixing, or >= 1.2e-38"
    return None if _not_negative(value) is None else ">= 0 and finite; 0 is no mixing"


def _up_to(most: float, *, has_zero: bool) -> Rule:
    """The rule of a length: > 0, or >= 0 if `has_zero`, and at most `most`."""

    def rule(value: float) -> str | None:
        if (value >= 0.0 if has_zero else value > 0.0) and value <= most:
            return None
        return f"{'>=' if has_zero else '>'} 0 and <= {most:,.0f}"

    return rule


def _seed(value: int) -> str | None:
    return None if 0 <= value < 2**31 else ">= 0 and < 2**31"


def _text(value: str) -> str | None:
    return None if value.strip() else "text that is not empty"


def _template(value: str) -> str | None:
    return None if "{}" in value else "text with {} in the place of the class"


def _name_and_split(value: str) -> str | None:
    return None if len(value.split(maxsplit=1)) == 2 else "of the form 'NAME SPLIT', such as 'cifar10 test'"


def _axis(value: int) -> str | None:
    return None if value == -1 or 1 <= value <= _MAX_INT else ">= 1, or -1 for all remaining devices"


def _kept(value: int) -> str | None:
    return None if 2 <= value <= _MAX_INT else ">= 2, so that a damaged checkpoint has one before it"


def _task(value: str) -> str | None:
    names = (*IMAGE_TASKS, *DENSE_TASKS)
    return None if value in names else f"of {', '.join(names)}"


_epochs = _up_to(MAX_STEPS, has_zero=False)
# Every value of a tuple is checked. None is valid where settings.py allows it.
RULES: dict[str, Rule] = {
    "model.width": _at_least(1),
    "model.depth": _at_least(0, _MAX_DEPTH),
    "model.num_heads": _at_least(1),
    "model.mlp_dim": _at_least(1),
    **dict.fromkeys(("model.pool_num_heads", "model.pool_mlp_dim"), _at_least(1)),
    "model.patch_size": _at_least(1, _MAX_PIXELS),
    "model.image_size": _at_least(1, _MAX_PIXELS),
    "model.channels": _at_least(1),
    "model.num_classes": _at_least(0),
    "model.num_registers": _at_least(0),
    "model.cls_blocks": _at_least(1),
    "model.layer_scale_init": _number,
    "model.drop_path": _share,
    "model.drop_path_group": _at_least(1),
    "model.norm_eps": _positive,
    **dict.fromkeys(("text.width", "text.num_heads", "text.mlp_dim", "text.embed_dim"), _at_least(1)),
    "text.depth": _at_least(0, _MAX_DEPTH),
    "text.vocab_size": _at_least(2),
    "text.context": _at_least(1),
    "text.end_token": _at_least(0),
    "text.norm_eps": _positive,
    "init_from.path": _text,
    "init_from.num_heads": _at_least(1),
    "data.name": _text,
    "data.data_dir": _text,
    "data.train_split": _text,
    "data.eval_split": _text,
    "data.batch_size": _at_least(1),
    "data.eval_batch_size": _at_least(1),
    "data.image_size": _at_least(1, _MAX_PIXELS),
    "data.shuffle_buffer": _at_least(1),
    "data.mean": _number,
    "data.std": _positive,
    "data.also_eval": _name_and_split,
    "data.repeats": _at_least(1),
    **dict.fromkeys(("data.captions.tokenizer", "data.captions.key", "data.captions.class_texts"), _text),
    "data.captions.templates": _template,
    "objective.classification.mixup_alpha": _alpha,
    "objective.classification.neighbour_weight": _not_negative,
    "objective.classification.cutmix_alpha": _alpha,
    "objective.classification.mix_groups": _at_least(1),
    "objective.classification.label_smoothing": _share,
    "objective.self_distillation.num_locals": _at_least(0, 64),
    "objective.self_distillation.local_size": _at_least(1, _MAX_PIXELS),
    "objective.self_distillation.mask_share": _probability,
    "objective.self_distillation.mask_ratios": _probability,
    "objective.self_distillation.mask_min_patches": _at_least(1),
    "objective.self_distillation.mask_group": _at_least(1),
    "objective.self_distillation.num_prototypes": _at_least(2),
    "objective.self_distillation.head_hidden": _at_least(1),
    "objective.self_distillation.head_bottleneck": _at_least(1),
    "objective.self_distillation.ibot_prototypes": _at_least(2),
    "objective.self_distillation.ibot_bottleneck": _at_least(1),
    "objective.self_distillation.temperatures": _positive,
    "objective.self_distillation.temperature_share": _probability,
    "objective.self_distillation.momentum": _probability,
    "objective.self_distillation.dino_weight": _not_negative,
    "objective.self_distillation.ibot_weight": _not_negative,
    "objective.self_distillation.koleo_weight": _not_negative,
    "objective.self_distillation.koleo_group": _at_least(1),
    "objective.self_distillation.chunk_rows": _at_least(1),
    "objective.image_text.initial_scale": _positive,
    "objective.image_text.initial_bias": _number,
    "objective.image_text.chunk": _at_least(1),
    "objective.image_text.group": _at_least(2),
    "objective.language_model.share": _part,
    "optimizer.learning_rate": _positive,
    "optimizer.warmup_learning_rate": _not_negative,
    "optimizer.min_learning_rate": _not_negative,
    "optimizer.warmup_steps": _at_least(0, MAX_STEPS),
    "optimizer.warmup_epochs": _up_to(MAX_STEPS, has_zero=True),
    "optimizer.warmup_share": _share,
    "optimizer.weight_decay": _not_negative,
    "optimizer.b1": _share,
    "optimizer.b2": _share,
    "optimizer.eps": _positive,
    "optimizer.grad_clip_norm": _positive,
    "optimizer.weight_decay_end": _not_negative,
    "optimizer.layer_decay": _rate_share,
    "optimizer.patch_embed_rate": _not_negative,
    "optimizer.head_rate": _not_negative,
    "optimizer.delay_share": _share,
    "optimizer.accumulation_steps": _at_least(1),
    "optimizer.ema_decay": _share,
    "mesh.data": _axis,
    "mesh.fsdp": _axis,
    "mesh.tensor": _axis,
    "checkpoint.every_steps": _at_least(1),
    "checkpoint.keep_last": _kept,
    "checkpoint.keep_best": _at_least(0),
    "checkpoint.keep_every_steps": _at_least(1),
    "checkpoint.max_failed_saves": _at_least(1),
    "tasks.seed": _seed,
    "tasks.while_training": _task,
    "tasks.knn.neighbors": _at_least(1),
    "tasks.knn.few_shot": _at_least(1),
    "tasks.knn.num_draws": _at_least(1, 1000),
    "tasks.linear.num_steps": _at_least(1, MAX_STEPS),
    "tasks.linear.batch_size": _at_least(1),
    "tasks.linear.learning_rates": _positive,
    "tasks.linear.num_blocks": _at_least(1, _MAX_DEPTH),
    "tasks.linear.held_out": _part,
    "tasks.logistic.exponents": _number,
    "tasks.logistic.num_c": _at_least(1),
    "tasks.logistic.max_iterations": _at_least(1),
    "tasks.logistic.tolerance": _positive,
    "tasks.logistic.held_out": _part,
    "tasks.segmentation.num_steps": _at_least(1, MAX_STEPS),
    "tasks.segmentation.batch_size": _at_least(1),
    "tasks.segmentation.learning_rate": _positive,
    "tasks.segmentation.weight_decay": _not_negative,
    "tasks.segmentation.warmup_share": _share,
    "tasks.segmentation.num_blocks": _at_least(1, _MAX_DEPTH),
    "tasks.segmentation.short_side": _at_least(1, _MAX_PIXELS),
    "tasks.segmentation.crop": _at_least(1, _MAX_PIXELS),
    "tasks.segmentation.stride": _at_least(1, _MAX_PIXELS),
    "tasks.depth.num_steps": _at_least(1, MAX_STEPS),
    "tasks.depth.batch_size": _at_least(1),
    "tasks.depth.learning_rate": _positive,
    "tasks.depth.weight_decay": _not_negative,
    "tasks.depth.warmup_share": _share,
    "tasks.depth.grad_clip_norm": _positive,
    "tasks.depth.mean_steps": _at_least(0, MAX_STEPS),
    "tasks.depth.gradient_weight": _not_negative,
    "tasks.depth.crop": _at_least(1, _MAX_PIXELS),
    "tasks.depth.num_blocks": _at_least(1, _MAX_DEPTH),
    "tasks.depth.num_bins": _at_least(2),
    "tasks.depth.range_m": _positive,
    "tasks.retrieval.tops": _at_least(1),
    "run.total_steps": _at_least(1, MAX_STEPS),
    "run.total_epochs": _epochs,
    "run.seed": _seed,
    "run.log_every_steps": _at_least(1),
    "run.log_every_s": _up_to(_MAX_SECONDS, has_zero=False),
    "run.compile_cache": _text,
    "run.eval_every_steps": _at_least(1),
    "run.eval_every_epochs": _epochs,
    "run.max_skipped_steps": _at_least(0),
    "run.stop_every_steps": _at_least(1),
    "run.lost_timeout_s": _up_to(_MAX_SECONDS, has_zero=False),
    "run.hang_timeout_s": _up_to(_MAX_SECONDS, has_zero=True),
}
UNSET = {
    "model.cls_blocks": "None for all blocks",
    "model.drop_path_group": "None to draw for each image",
    "optimizer.grad_clip_norm": "None for no clipping",
    "optimizer.ema_decay": "None for no average",
    "checkpoint.keep_every_steps": "None to keep no such checkpoints",
}
