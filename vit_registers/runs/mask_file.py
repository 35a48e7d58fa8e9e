"""The copy of the file of a `file` mask in the run folder. A run is loaded without the original file."""

import dataclasses

from etils import epath

from vit_registers.config import Model
from vit_registers.models.masks import parse_mask, read_mask_file
from vit_registers.storage import files
from vit_registers.storage.local_copy import local_copy

FILE = "mask.npy"


def write_mask_file(model: Model, run: epath.Path) -> None:
    """Copies the file of a `file` mask of `model` into the run folder.

    Raises ConfigError if the file is missing or has changed.
    """
    call = parse_mask(model.mask)
    if call.name == "file":
        content = read_mask_file(**call.arguments)
        if not files.exists(run / FILE) or files.read_file(run / FILE) != content:
            files.write_bytes(run / FILE, content)


def with_run_mask(model: Model, run: epath.Path) -> Model:
    """The model of a run, with the path of a `file` mask replaced by that of its copy in the run folder.

    It is unchanged for other masks, or without a copy. The SHA-256 in the mask detects a changed copy.
    """
    call = parse_mask(model.mask)
    if call.name != "file" or not files.exists(run / FILE):
        return model
    call.arguments["path"] = local_copy(run / FILE)
    return dataclasses.replace(model, mask=str(call))
