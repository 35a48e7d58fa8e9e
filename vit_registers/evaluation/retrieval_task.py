"""Retrieval of texts by images and of images by texts: `--task=retrieval`."""

from collections.abc import Callable
from pathlib import Path

from vit_registers.config import Config, Run, Tasks
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.data.selection import select
from vit_registers.evaluation.images import num_left_out
from vit_registers.evaluation.retrieval import measure_retrieval, read_pairs
from vit_registers.evaluation.task import FrozenModel, Splits, TaskResult, require_texts


def retrieve(
    frozen: FrozenModel,
    settings: Tasks,
    splits: Splits,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """R@1, R@5 and R@10 on the test split, in both directions. An interrupted call begins again."""
    del folder
    texts, data = require_texts(frozen, "retrieval"), select(frozen.data, *splits.test)
    config = Config(model=frozen.model, data=data, run=Run(seed=settings.seed))
    loader = open_data(config, needs_labels=False)
    split = EvalSplit(loader, splits.test[1])
    pairs = read_pairs(split, data.captions)
    say(f"vectors of {loader.num_examples(split.split):,} images and {len(pairs.texts):,} texts")
    values = measure_retrieval(
        settings.retrieval,
        texts.reader,
        texts.params,
        frozen.model,
        data,
        split,
        pairs,
        frozen.mesh,
        frozen.edits,
    )
    notes = []
    if pairs.is_of_classes:
        notes.append(
            "the data has no captions: the texts are those of its classes, and any image of a class fits"
        )
    return TaskResult({**values, "left_out": num_left_out([loader], frozen.mesh)}, notes=notes)


RETRIEVAL = retrieve
