"""Whether a run folder belongs to a config."""

from typing import Any

from vit_registers import config as config_lib
from vit_registers.errors import ConfigError


def check_same_config(saved: dict[str, Any], now: config_lib.Config, run: str) -> None:
    """Raises ConfigError with the differing settings where a run folder belongs to another config."""
    free = config_lib.may_change(config_lib.RESUME)
    # Read back first, so that settings which are newer than the run have their defaults on both sides.
    there, here = (config_lib.flatten(config_lib.to_dict(c)) for c in (config_lib.from_mapping(saved), now))
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
