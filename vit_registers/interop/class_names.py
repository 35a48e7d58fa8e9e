"""The class names of a checkpoint: id2label of transformers, label_names of timm, or class_names.json."""

import re
from pathlib import Path

from vit_registers.errors import CheckpointError
from vit_registers.interop.folders import own_file
from vit_registers.interop.opened import OpenedWeights
from vit_registers.interop.settings import read_json

CLASS_NAMES_FILE = "class_names.json"  # of exports to formats without a place for them
_PLACEHOLDER = re.compile(r"LABEL_\d+")


def class_names_of(opened: OpenedWeights, path: Path) -> tuple[str, ...] | None:
    """The names of the classes of the head, in their order; None if the files do not have them.

    transformers writes LABEL_0, LABEL_1, ... for unknown names. Raises CheckpointError for a file with
    something else than names.
    """
    settings, count = opened.found.settings, opened.model.num_classes
    if not count:
        return None
    folder = path if path.is_dir() else path.parent
    if isinstance(labels := settings.get("id2label"), dict):
        given, where = [labels.get(str(number)) for number in range(len(labels))], "id2label of config.json"
    elif "label_names" in settings:
        given, where = settings["label_names"], "label_names of config.json"
    elif (file := own_file(path, CLASS_NAMES_FILE)) is not None:
        given, where = read_json(file), CLASS_NAMES_FILE
    else:
        return None
    names = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
    if not isinstance(given, list) or len(names) != len(given):
        raise CheckpointError(f"{folder}: {where} must be a name for each class, numbered from 0 on")
    if all(_PLACEHOLDER.fullmatch(name) for name in names):
        return None
    return tuple(names) if len(names) == count else None
