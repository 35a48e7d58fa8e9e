"""Several run folders by one pattern, such as sweep/*. Imports no JAX."""

import glob
import os
import re
from typing import Any

from vit_registers.errors import CheckpointError
from vit_registers.runs.checkpoint_folder import checkpoint_root
from vit_registers.storage.paths import is_remote

_NUMBERS = re.compile(r"(\d+)")


def matching_runs(checkpoint: str) -> list[str]:
    """The run folders that a pattern with * matches, such as sweep/* or sweep/*@all; others are left out.

    Numbers in their names are in order: 2 comes before 16. Checkpoints without * are returned unchanged.
    Raises CheckpointError if no run folder matches.
    """
    pattern, at, suffix = checkpoint.rpartition("@")
    if not at or "*" in suffix:
        pattern, at, suffix = checkpoint, "", ""
    pattern = os.path.expanduser(pattern)
    if "*" not in pattern or is_remote(pattern) or os.path.lexists(os.path.expanduser(checkpoint)):
        return [checkpoint]
    found = [path for path in glob.glob(pattern) if checkpoint_root(path).is_dir()]
    if not found:
        raise CheckpointError(f"--checkpoint={checkpoint}: no run folder matches {pattern}")
    return [f"{path}{at}{suffix}" for path in sorted(found, key=_in_order)]


def _in_order(path: str) -> list[Any]:
    """The path as texts and numbers in turn."""
    return [int(part) if part.isdigit() else part for part in _NUMBERS.split(path)]
