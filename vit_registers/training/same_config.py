"""Whether a run folder belongs to a config: which settings may change between two starts of one run."""

from typing import Any

from vit_registers import config as config_lib
from vit_registers.errors import ConfigError

# Settings that may change between two starts of one run: they leave its results as they are.
FREE_SETTINGS = (
    "mesh.",
    "checkpoint.",
    "data.data_dir",
    "data.eval_batch_size",
    "data.also_eval",
    "run.log_every_steps",
    "run.max_skipped_steps",
    "run.profile_steps",
    "run.stop_every_steps",
    "run.lost_timeout_s",
    "run.hang_timeout_s",
    "run.use_tensorboard",
    "model.attention",
    "model.remat",
    "model.use_scan",
)


def check_same_config(saved: dict[str, Any], now: config_lib.Config, run: str) -> None:
    """Raises ConfigError with the differing settings where a run folder belongs to another config."""
    # Read back first, so that settings which are newer than the run have their defaults on both sides.
    there, here = (
        config_lib.flatten(config_lib.to_dict(c)) for c in (config_lib.from_mapping(saved, checked=()), now)
    )
    differing = [
        f"{key} ({there.get(key)!r} there, {here.get(key)!r} now)"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not key.startswith(FREE_SETTINGS)
    ]
    if differing:
        raise ConfigError(
            f"{run} holds a run of another config: {'; '.join(differing)}. "
            "Use another --workdir, or that config"
        )
