"""The copy of the file of a `file` mask in the run folder: a run is loaded without the file of the user."""

import dataclasses
from pathlib import Path

from vit_registers.config import Model
from vit_registers.models.masks import parse_mask, read_mask_file

FILE = "mask.npy"


def write_mask_file(model: Model, run: Path) -> None:
    """Copies the file of the mask of `model` into the run folder; nothing for other masks.

    Raises ConfigError if the file is missing or has changed.
    """
    call = parse_mask(model.mask)
    if call.name == "file":
        content = read_mask_file(**call.arguments)
        if not (run / FILE).exists() or (run / FILE).read_bytes() != content:
            (run / FILE).write_bytes(content)


def with_run_mask(model: Model, run: Path) -> Model:
    """The model of a run, with the path of a `file` mask replaced by that of the copy in the run folder.

    Unchanged for other masks, and without a copy. The SHA-256 stays in the mask, and refuses a changed copy.
    """
    call = parse_mask(model.mask)
    if call.name != "file" or not (run / FILE).exists():
        return model
    call.arguments["path"] = str(run / FILE)
    return dataclasses.replace(model, mask=str(call))
