"""The TaskResult of segmentation."""

from collections.abc import Mapping

import numpy as np

from vit_registers.config import SegmentationSettings
from vit_registers.data.sources.dense import IGNORED, DenseSource
from vit_registers.evaluation.dense.baselines import POSITION, RANDOM
from vit_registers.evaluation.dense.pictures import palette, side_by_side
from vit_registers.evaluation.features import empty_classes
from vit_registers.evaluation.segmentation.inference import Counted
from vit_registers.evaluation.segmentation.scores import Scores, class_table, confusion_table, scores
from vit_registers.evaluation.task import TaskResult, TaskTable


def segmentation_result(
    counted: Mapping[str, Counted],
    *,
    labelled_Y: np.ndarray,
    settings: SegmentationSettings,
    train: tuple[DenseSource, str],
    test: tuple[DenseSource, str],
    picture_HxWx3: np.ndarray,
) -> TaskResult:
    """The result from what each row of the table predicts; the first one is the model's.

    `labelled_Y` says which classes have a pixel that the model's head was trained on.
    """
    found = {name: scores(one.count_YxY) for name, one in counted.items()}
    model, (count_YxY, _, num_non_finite) = next(iter(counted.items()))
    (source, split), names = test, test[0].class_names
    own = found[model]
    values: dict[str, float | int | str] = {
        **own._asdict(),
        "random_backbone_miou": found[RANDOM].miou,
        "position_only_miou": found[POSITION].miou,
        "test_images": source.num_examples(split),
        "non_finite": num_non_finite,
        "train_images": train[0].num_examples(train[1]),
        "classes": len(names),
        "divisor": settings.divisor,
    }
    for name in ("num_steps", "batch_size", "num_blocks", "short_side", "crop", "stride", "augment"):
        values[name] = getattr(settings, name)
    rows = [(name, *one) for name, one in found.items()]
    tables = {
        "rows": TaskTable(("features", *Scores._fields), rows),
        "classes": class_table(count_YxY, names),
        "confusion": confusion_table(count_YxY, names),
    }
    notes = empty_classes(labelled_Y, names, what="pixel in the images of the training")
    notes += _notes(model, found, count_YxY, names)
    return TaskResult(values, tables, {"predictions": picture_HxWx3}, notes)


def _notes(
    model: str, found: Mapping[str, Scores], count_YxY: np.ndarray, names: tuple[str, ...]
) -> list[str]:
    notes = []
    unlabelled = [name for name, pixels in zip(names, count_YxY.sum(axis=1), strict=True) if not pixels]
    if unlabelled:
        shown = ", ".join(unlabelled[:5]) + (", ..." if len(unlabelled) > 5 else "")
        notes.append(
            f"{len(unlabelled)} of {len(names)} classes have no pixel in the test split ({shown}): each "
            "counts 0 in the mean IoU if it is predicted, and is left out otherwise"
        )
    for row in (POSITION, RANDOM):
        if found[model].miou <= found[row].miou:
            notes.append(f"{model} is not better than the baseline '{row}'")
    return notes


def picture(
    test: tuple[DenseSource, str], predictions: Mapping[int, np.ndarray], channels: int
) -> np.ndarray:
    """uint8 HxWx3: image, truth and prediction side by side, with the classes that occur."""
    source, split = test
    colors, rows, classes = palette(), [], set()
    for i, predicted_HxW in sorted(predictions.items()):
        image_HxWxC, label_HxW = source.load(split, i, channels)
        classes |= {*np.unique(label_HxW), *np.unique(predicted_HxW)} - {IGNORED}
        image_HxWx3 = np.broadcast_to(image_HxWxC, (*label_HxW.shape, 3))
        rows.append((image_HxWx3, colors[label_HxW], colors[predicted_HxW]))
    legend = [(source.class_names[i], colors[i]) for i in sorted(classes)]
    return side_by_side(rows, ("image", "truth", "prediction"), legend)
