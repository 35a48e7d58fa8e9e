"""Checks that a run folder matches a config and its data."""

from typing import Any

import jax

from vit_registers import config as config_lib
from vit_registers.data.class_names import match, some
from vit_registers.errors import ConfigError
from vit_registers.models.masks import is_same_mask
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.status import say


def check_same_config(saved: dict[str, Any], now: dict[str, Any], run: str) -> None:
    """Raises ConfigError, which names the differing settings, if a run folder has another config.

    Both are results of config.to_dict(); `saved` may be of an earlier version.
    """
    free = config_lib.may_change(config_lib.RESUME)
    # from_saved gives settings that are newer than the run their defaults on both sides.
    saved_config, now_config = config_lib.from_saved(saved), config_lib.from_saved(now)
    there, here = (config_lib.flatten(config_lib.to_dict(c)) for c in (saved_config, now_config))
    differing = [
        f"{key} ({there.get(key)!r} there, {here.get(key)!r} now)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
        and key not in free
        and not (key == "model.mask" and is_same_mask(saved_config.model, now_config.model))
    ]
    if differing:
        raise ConfigError(
            f"{run} holds a run of another config: {'; '.join(differing)}. "
            "Use another --workdir, or the config of the run"
        )


def check_same_data(saved: TrainedOn | None, now: TrainedOn | None, run: str) -> None:
    """Raises ConfigError if the data set has other classes than those that the run was trained on.

    If the number of training examples differs, a line is printed: the resumed run differs from an
    uninterrupted one. `saved` is None for checkpoints of early versions.
    """
    if saved is None or now is None:
        return
    names = saved.class_names
    if match(now.class_names, names, where=f"{run}: the data set") is not None:
        raise ConfigError(
            f"{run} was trained on {len(names)} classes: {some(names)}; the data set now has "
            f"{len(now.class_names)}: {some(now.class_names)}. Resuming requires the same, in the same order"
        )
    if saved.num_examples != now.num_examples and jax.process_index() == 0:
        say(
            f"{run} was trained on {saved.num_examples} examples, and data.train_split now has "
            f"{now.num_examples}: it resumes, but its results differ from those of an uninterrupted run"
        )


def say_changed_attention(saved: str | None, now: str | None, run: str) -> None:
    """Prints a line if a run resumes with another attention back end; None: not recorded."""
    if None not in (saved, now) and saved != now and jax.process_index() == 0:
        say(
            f"{run} was trained with model.attention='{saved}' and resumes with '{now}': results differ from "
            "those of an uninterrupted run by rounding"
        )
