"""The text tower of a run, for tasks that compare images with texts on edited models."""

from vit_registers import loading
from vit_registers.evaluation.catalog import has_texts
from vit_registers.evaluation.task import FrozenTexts
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.runs.tokenizer_file import read_tokenizer
from vit_registers.runtime.mesh import ordered_mesh, own_mesh
from vit_registers.storage import paths


def read_text_tower(checkpoint: RunCheckpoint, params: str | None) -> FrozenTexts | None:
    """The modules of a run beside the ViT, on all devices of this process; None for a run without texts.

    `params` is as in load_run. Raises ConfigError or DataError without its tokenizer.
    """
    config = checkpoint.config
    if not has_texts(config.objective):
        return None
    reader = TextReader(config.text, read_tokenizer(paths.folder(checkpoint.run)))
    mesh = own_mesh(ordered_mesh())
    return FrozenTexts(loading.read_heads(checkpoint, mesh, params=params), reader)
