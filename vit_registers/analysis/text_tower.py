"""The text tower of a checkpoint, for what compares images with texts."""

from collections.abc import Mapping
from typing import Any

from vit_registers import loading
from vit_registers.errors import CheckpointError, UserError
from vit_registers.evaluation.task import FrozenTexts
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.runtime.mesh import ordered_mesh, own_mesh
from vit_registers.text_readers import text_reader


def read_text_tower(
    checkpoint: RunCheckpoint | loading.ExternalCheckpoint, params: str | None
) -> FrozenTexts | None:
    """The modules of a checkpoint beside the ViT, on all devices of this process; None without a text tower.

    `params` is as in load_run. Raises ConfigError, MissingPackageError or DataError without its tokenizer.
    """
    reader = text_reader(checkpoint)
    if reader is None:
        return None
    mesh = own_mesh(ordered_mesh())
    return FrozenTexts(loading.read_heads(checkpoint, mesh, params=params), reader)


def open_whole(
    path: str, overrides: Mapping[str, Any], params: str | None
) -> tuple[loading.ExternalCheckpoint, FrozenTexts | None, str]:
    """Weights of another code base, their text tower, and why it cannot be used; "" without one.

    Raises as open_external.
    """
    try:
        external = loading.open_external(path, overrides, params=params, is_whole=None)
    except CheckpointError as error:
        return loading.open_external(path, overrides, params=params), None, str(error)
    try:
        return external, read_text_tower(external, params), ""
    except UserError as error:
        return external, None, str(error)
