"""Zero-shot classification of a split by the texts of its classes: `--task=zero_shot`."""

import collections
from collections.abc import Callable
from pathlib import Path

from vit_registers.config import Config, Run, Tasks
from vit_registers.data.class_names import some
from vit_registers.data.loaders import EvalSplit, open_data
from vit_registers.data.selection import select
from vit_registers.errors import DataError
from vit_registers.evaluation.images import num_left_out
from vit_registers.evaluation.task import FrozenModel, Splits, TaskResult, require_texts
from vit_registers.evaluation.text_vectors import image_vectors
from vit_registers.evaluation.zero_shot.classify import class_vectors, zero_shot_metrics
from vit_registers.evaluation.zero_shot.prompts import Prompts, class_prompts


def measure_zero_shot(
    frozen: FrozenModel,
    settings: Tasks,
    splits: Splits,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """Top-1 and top-5 of the test split. No training images are read. An interrupted call begins again."""
    del folder
    texts, data = require_texts(frozen, "zero_shot"), select(frozen.data, *splits.test)
    loader = open_data(Config(model=frozen.model, data=data, run=Run(seed=settings.seed)))
    if not loader.class_names:
        raise DataError(f"'{loader.name}' has no classes: give images with classes with --data=NAME:SPLIT")
    prompts = class_prompts(settings.zero_shot, data.captions, loader.class_names)
    number = sum(map(len, prompts.texts))
    say(f"vectors of {number:,} texts of {len(prompts.texts)} classes")
    class_YxE = class_vectors(texts.reader, texts.params, prompts, frozen.mesh, kept=texts.kept)
    say(f"vectors of {loader.num_examples(splits.test[1]):,} images")
    split = EvalSplit(loader, splits.test[1])
    vectors = image_vectors(frozen.model, data, texts.params, split, frozen.mesh, frozen.edits)
    values = zero_shot_metrics(class_YxE, vectors, frozen.mesh)
    about = {"classes": len(prompts.texts), "templates": len(prompts.texts[0])}
    left_out = num_left_out([loader], frozen.mesh)
    return TaskResult({**about, **values, "left_out": left_out}, notes=_notes(prompts))


def _notes(prompts: Prompts) -> list[str]:
    twice = [name for name, count in collections.Counter(prompts.names).items() if count > 1]
    if not twice:
        return []
    are = "name is that" if len(twice) == 1 else "names are those"
    return [f"{len(twice)} {are} of several classes, which no text can tell apart: {some(twice)}"]


ZERO_SHOT = measure_zero_shot
