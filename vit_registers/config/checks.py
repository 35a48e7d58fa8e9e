"""Which values each setting of core.py may have by itself, whatever the others are.

What relates several settings is checked where it matters, but for the number of channels. Choices among names
are checked where the names are.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vit_registers.config.core import Config
from vit_registers.errors import ConfigError

SECTIONS = tuple(field.name for field in dataclasses.fields(Config))
MAX_STEPS = 10**8  # of a run, whose learning rates are a table
_MAX_INT = 2**31 - 1  # counts and shapes are int32 on the devices
_MAX_DEPTH = 1000  # blocks are traced one by one: this many take half a minute
_MAX_PIXELS = 65_535  # of a side; that of JPEG
_MAX_SECONDS = 1e7  # 115 days; operating systems take no waits of any length

Rule = Callable[[Any], str | None]  # what is wanted instead of a value, None where it may be


def _at_least(least: int, most: int = _MAX_INT) -> Rule:
    def wanted(value: int) -> str | None:
        if value < least:
            return f">= {least}"
        return None if value <= most else f"<= {most:,}"

    return wanted


def _float32(value: float) -> float:
    """The number as devices have it: rounded, infinite above 3.4e38 and 0 below 1.2e-38 (subnormal)."""
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return 0.0 if abs(rounded) < np.finfo(np.float32).tiny else rounded


def _number(value: float) -> str | None:
    return None if math.isfinite(_float32(value)) else "a finite number, in float32"


def _not_negative(value: float) -> str | None:
    if not value >= 0.0:
        return ">= 0"
    return _number(value)


def _positive(value: float) -> str | None:
    if not value > 0.0:
        return "> 0"
    return _number(value) if _float32(value) > 0.0 else "> 0 in float32, which is >= 1.2e-38"


def _below_one(text: str) -> Rule:
    def wanted(value: float) -> str | None:
        if not 0.0 <= value < 1.0:
            return text
        return None if _float32(value) < 1.0 else "< 1 in float32, as 0.9999999"

    return wanted


def _alpha(value: float) -> str | None:
    if value > 0.0 and _float32(value) == 0.0:
        return "0 for none, or >= 1.2e-38"
    return None if _not_negative(value) is None else ">= 0 and finite, where 0 is none"


def _up_to(most: float, *, has_zero: bool) -> Rule:
    """A length: positive, or also 0, and bounded."""

    def wanted(value: float) -> str | None:
        if (value >= 0.0 if has_zero else value > 0.0) and value <= most:
            return None
        return f"{'>=' if has_zero else '>'} 0 and <= {most:,.0f}"

    return wanted


def _seed(value: int) -> str | None:
    return None if 0 <= value < 2**31 else "0 <= seed < 2**31"


def _text(value: str) -> str | None:
    return None if value.strip() else "some text"


def _name_and_split(value: str) -> str | None:
    return None if len(value.split(maxsplit=1)) == 2 else "'NAME SPLIT' each, as in 'cifar10 test'"


def _axis(value: int) -> str | None:
    return (
        None if value == -1 or 1 <= value <= _MAX_INT else "sizes >= 1, or -1 for the devices that are left"
    )


def _kept(value: int) -> str | None:
    # A damaged checkpoint would have none before it.
    return None if 2 <= value <= _MAX_INT else ">= 2, so that a damaged checkpoint has one before it"


_share = _below_one(">= 0 and < 1")
_epochs = _up_to(MAX_STEPS, has_zero=False)
# Each value of a tuple is checked; None may be where core.py allows it.
RULES: dict[str, Rule] = {
    "model.width": _at_least(1),
    "model.depth": _at_least(0, _MAX_DEPTH),
    "model.num_heads": _at_least(1),
    "model.mlp_dim": _at_least(1),
    "model.patch_size": _at_least(1, _MAX_PIXELS),
    "model.image_size": _at_least(1, _MAX_PIXELS),
    "model.channels": _at_least(1),
    "model.num_classes": _at_least(0),
    "model.num_registers": _at_least(0),
    "model.layer_scale_init": _number,
    "model.drop_path": _below_one("0 <= rate < 1"),
    "model.norm_eps": _positive,
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
    "objective.classification.mixup_alpha": _alpha,
    "objective.classification.cutmix_alpha": _alpha,
    "objective.classification.mix_groups": _at_least(1),
    "optimizer.learning_rate": _positive,
    "optimizer.warmup_learning_rate": _not_negative,
    "optimizer.min_learning_rate": _not_negative,
    "optimizer.warmup_steps": _at_least(0, MAX_STEPS),
    "optimizer.warmup_epochs": _up_to(MAX_STEPS, has_zero=True),
    "optimizer.weight_decay": _not_negative,
    "optimizer.b1": _share,
    "optimizer.b2": _share,
    "optimizer.eps": _positive,
    "optimizer.grad_clip_norm": _positive,
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
    "run.total_steps": _at_least(1, MAX_STEPS),
    "run.total_epochs": _epochs,
    "run.seed": _seed,
    "run.log_every_steps": _at_least(1),
    "run.eval_every_steps": _at_least(1),
    "run.eval_every_epochs": _epochs,
    "run.max_skipped_steps": _at_least(0),
    "run.stop_every_steps": _at_least(1),
    "run.lost_timeout_s": _up_to(_MAX_SECONDS, has_zero=False),
    "run.hang_timeout_s": _up_to(_MAX_SECONDS, has_zero=True),
}
_UNSET = {
    "optimizer.grad_clip_norm": "None for no clipping",
    "optimizer.ema_decay": "None for no average",
    "checkpoint.keep_every_steps": "None for no such steps",
}


def _trouble(name: str, value: Any) -> str | None:
    """What is wrong with the value of a setting, in a line; None where it may be."""
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    wanted = next(filter(None, map(RULES[name], values)), None)
    if wanted is None:
        return None
    return f"{name}={value!r}: want " + ", or ".join(filter(None, (wanted, _UNSET.get(name))))


def check_value(name: str, value: Any) -> None:
    """Raises ConfigError where the setting `name`, such as "run.seed", cannot have that value."""
    if trouble := _trouble(name, value):
        raise ConfigError(trouble)


def _troubles(section: str, settings: Any) -> list[str]:
    found: list[str] = []
    for field in dataclasses.fields(settings):
        name, value = f"{section}.{field.name}", getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += _troubles(name, value)
        elif name in RULES and (trouble := _trouble(name, value)):
            found.append(trouble)
    return found


def check_section(section: str, settings: Any) -> None:
    """Raises ConfigError with all values that a section, such as "model" with a Model, cannot have."""
    if troubles := _troubles(section, settings):
        raise ConfigError("; ".join(troubles))


def check(config: Config, sections: Sequence[str] = SECTIONS) -> Config:
    """The config. Raises ConfigError with all values of those sections that cannot be, in one line."""
    troubles = [line for section in sections for line in _troubles(section, getattr(config, section))]
    if "data" in sections:
        channels, data = config.model.channels, config.data
        wanted = f"one for each channel, and model.channels={channels}"
        troubles += [
            f"data.{name}={values!r}: want {wanted}"
            for name, values in (("mean", data.mean), ("std", data.std))
            if len(values) != channels
        ]
    if troubles:
        raise ConfigError("; ".join(troubles))
    return config
