"""The copy of the file of a `file` mask in the run folder. A run is loaded without the original file."""

import dataclasses
from pathlib import Path

from vit_registers.config import Model
from vit_registers.models.masks import parse_mask, read_mask_file

FILE = "mask.npy"


def write_mask_file(model: Model, run: Path) -> None:
    """Copies the file of a `file` mask of `model` into the run folder.

    Raises ConfigError if the file is missing or has changed.
    """
    call = parse_mask(model.mask)
    if call.name == "file":
        content = read_mask_file(**call.arguments)
        if not (run / FILE).exists() or (run / FILE).read_bytes() != content:
            (run / FILE).write_bytes(content)


def with_run_mask(model: Model, run: Path) -> Model:
    """The model of a run, with the path of a `file` mask replaced by that of its copy in the run folder.

    It is unchanged for other masks, or without a copy. The SHA-256 in the mask detects a changed copy.
    """
    call = parse_mask(model.mask)
    if call.name != "file" or not (run / FILE).exists():
        return model
    call.arguments["path"] = str(run / FILE)
    return dataclasses.replace(model, mask=str(call))
