"""Whether a run folder belongs to a config, and to the data that are there."""

from typing import Any

import jax

from vit_registers import config as config_lib
from vit_registers.data.class_names import match, some
from vit_registers.errors import ConfigError
from vit_registers.runs.checkpoint_folder import TrainedOn
from vit_registers.runs.writers import say


def check_same_config(saved: dict[str, Any], now: config_lib.Config, run: str) -> None:
    """Raises ConfigError with the differing settings where a run folder belongs to another config."""
    free = config_lib.may_change(config_lib.RESUME)
    # Read back first, so that settings which are newer than the run have their defaults on both sides.
    there, here = (config_lib.flatten(config_lib.to_dict(c)) for c in (config_lib.from_saved(saved), now))
    differing = [
        f"{key} ({there.get(key)!r} there, {here.get(key)!r} now)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in free
    ]
    if differing:
        raise ConfigError(
            f"{run} holds a run of another config: {'; '.join(differing)}. "
            "Use another --workdir, or that config"
        )


def check_same_data(saved: TrainedOn | None, now: TrainedOn | None, run: str) -> None:
    """Raises ConfigError where the data set has other classes than the run was trained on.

    Another number of training examples is printed: the run goes on, but not with the same bits. `saved` is
    None in checkpoints of early versions.
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
            f"{now.num_examples}: it goes on, but not with the bits of a run that never stopped"
        )
