"""Logistic regression on frozen features: `--task=logistic`, by DINOv2's protocol.

L2 penalty, float64, on the features as they are (cls of the last block after the final norm). C is chosen on
a held-out part of the training split, then the classifier is fitted again to the whole split; or it is chosen
on the test images.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_registers.config import LogisticSettings, Tasks, lookup
from vit_registers.data.sources.parts import held_out_records
from vit_registers.errors import DataError, TrainingError
from vit_registers.evaluation.dense.saved import SavedHead, read_head, write_head
from vit_registers.evaluation.features import block_features, empty_classes, run_features, training_features
from vit_registers.evaluation.images import ImageTask, TaskImages
from vit_registers.evaluation.linear.host_features import FeatureBatch, feature_batches, host_features
from vit_registers.evaluation.linear.plan import CHOICES
from vit_registers.evaluation.logistic import LogisticModel, fit_plain
from vit_registers.evaluation.pace import Pace
from vit_registers.evaluation.task import FrozenModel, TaskResult, TaskTable
from vit_registers.evaluation.threads import threads_for
from vit_registers.runtime.exchange import from_first

_COLUMNS = ("C", "top1", "loss", "converged")


class LabelledFeatures(NamedTuple):
    """Features and labels; labels -1 are padding, and not each row has features that are finite."""

    x_NxD: np.ndarray  # float64
    label_NxK: np.ndarray

    @property
    def is_finite_N(self) -> np.ndarray:
        """Whether the features of a row are finite."""
        return np.asarray(np.isfinite(self.x_NxD).all(axis=1))


def measure_logistic(
    frozen: FrozenModel,
    settings: Tasks,
    images: TaskImages,
    *,
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """top1, top5 and loss of the classifier with the chosen C, and a table of all C.

    An interrupted call computes the features again, and continues with the C that are left.
    """
    logistic = settings.logistic
    lookup(dict.fromkeys(CHOICES), logistic.chosen_on, "tasks.logistic.chosen_on")
    trained, held_N, left_out = _training(frozen, settings, images, say)
    features, tested = block_features(frozen.model, frozen.data, 1, frozen.edits), {}
    for name, split in images.tests.items():
        made = run_features(features, frozen.backbone, split, frozen.mesh, say=say)
        tested[name] = _examples(host_features(feature_batches(made), frozen.mesh))
    num_broken = images.num_broken(frozen.mesh)

    def fit() -> TaskResult:
        result = _fit_and_score(frozen, settings, images, trained, held_N, tested, folder, say)
        return result._replace(values={**result.values, "left_out": num_broken, "not_learned": left_out})

    return from_first(fit, frozen.mesh)


def _fit_and_score(
    frozen: FrozenModel,
    settings: Tasks,
    images: TaskImages,
    trained: LabelledFeatures,
    held_N: np.ndarray,
    tested: Mapping[str, LabelledFeatures],
    folder: Path | None,
    say: Callable[[str], None],
) -> TaskResult:
    """The result, without the numbers of images that were left out. Runs no model."""
    logistic = settings.logistic
    c_Y = 10 ** np.linspace(*logistic.exponents, logistic.num_c)
    is_held = logistic.chosen_on == "held_out"
    fitted = LabelledFeatures(*(x[~held_N] for x in trained)) if is_held else trained
    judged = LabelledFeatures(*(x[held_N] for x in trained)) if is_held else tested[""]
    saved = None if folder is None else SavedHead(folder / "scores.npz", repr((logistic, len(held_N))))
    with threads_for(fitted.x_NxD.size * images.num_classes):
        scores_Cx3 = _choose(logistic, c_Y, fitted, judged, saved, say)
        best = max(range(len(c_Y)), key=lambda i: (scores_Cx3[i, 0], -scores_Cx3[i, 1]))
        model = _fit(logistic, c_Y[best], trained)
    values: dict[str, float | int | str] = {}
    for name, examples in tested.items():
        table = images.tests[name].table
        own = score_logistic(model, examples, None if table is None else np.unique(table), images.num_classes)
        values |= {f"{name}/{key}" if name else key: value for key, value in own.items()}
    values |= {"held_out_top1": float(scores_Cx3[best, 0])} if is_held else {}
    values |= {"C": float(c_Y[best]), "chosen_on": logistic.chosen_on, "training_images": len(held_N)}
    rows = [(float(c), *map(float, row[:2]), int(row[2])) for c, row in zip(c_Y, scores_Cx3, strict=True)]
    notes = [*_notes(frozen, settings, scores_Cx3, int(held_N.sum())), *_limits(c_Y, best)]
    count_Y = np.bincount(trained.label_NxK[:, 0], minlength=images.num_classes)
    notes += empty_classes(count_Y, images.train.loader.class_names)
    return TaskResult(values, {"strengths": TaskTable(_COLUMNS, rows)}, notes=notes)


def _training(
    frozen: FrozenModel, settings: Tasks, images: TaskImages, say: Callable[[str], None]
) -> tuple[LabelledFeatures, np.ndarray, int]:
    """(examples to learn from, whether each is held out, the number of those that are not finite)."""
    features, split = block_features(frozen.model, frozen.data, 1, frozen.edits), images.train
    made = training_features(features, frozen.backbone, split, frozen.mesh, say=say)
    rows = host_features(feature_batches(made), frozen.mesh)
    number = split.loader.num_examples(split.split)
    held_N = np.zeros(len(rows.mask_B), bool)
    held_N[held_out_records(number, settings.logistic.held_out, settings.seed)] = True
    examples = _examples(rows)
    good_N = rows.mask_B & examples.is_finite_N
    trained = LabelledFeatures(*(x[good_N] for x in examples))
    held_N = held_N[good_N] if settings.logistic.chosen_on == "held_out" else np.zeros(good_N.sum(), bool)
    classes = len(np.unique(trained.label_NxK[~held_N, 0]))
    left_out = int((rows.mask_B & ~examples.is_finite_N).sum())
    if classes < 2 and left_out:
        raise TrainingError(
            f"the features of {left_out} of {int(rows.mask_B.sum())} training images are not finite, so no "
            "logistic regression fits"
        )
    if classes < 2:
        raise DataError(
            f"split '{split.split}' of '{split.loader.name}' has images of {classes} class(es) to learn "
            "from: must be 2 or more"
        )
    return trained, held_N, left_out


def _examples(rows: FeatureBatch) -> LabelledFeatures:
    label_NxK = np.where(rows.mask_B[:, None], rows.label_BxK, -1)
    return LabelledFeatures(rows.cls_BxLxD[:, -1].astype(np.float64), label_NxK)


def _fit(settings: LogisticSettings, strength: float, examples: LabelledFeatures) -> LogisticModel:
    limits = {"max_iterations": settings.max_iterations, "tolerance": settings.tolerance}
    return fit_plain(examples.x_NxD, examples.label_NxK[:, 0], strength=float(strength), **limits)


def _choose(
    settings: LogisticSettings,
    c_Y: np.ndarray,
    fitted: LabelledFeatures,
    judged: LabelledFeatures,
    saved: SavedHead | None,
    say: Callable[[str], None],
) -> np.ndarray:
    """scores_Cx3: top-1, loss and whether the fit converged, of each C on the examples `judged`."""
    scores_Cx3 = np.full((len(c_Y), 3), np.nan)
    if saved is not None and (found := read_head(saved, scores_Cx3)) is not None:
        scores_Cx3 = found
    left = [i for i in range(len(c_Y)) if np.isnan(scores_Cx3[i, 2])]
    pace = Pace("logistic regression", len(c_Y), say, unit="values of C", first=len(c_Y) - len(left))
    num_classes = int(max(fitted.label_NxK.max(), judged.label_NxK.max())) + 1
    for i in left:
        model = _fit(settings, c_Y[i], fitted)
        own = score_logistic(model, judged, None, num_classes)
        scores_Cx3[i] = own["top1"], own["loss"], model.is_converged
        pace.done(i + 1)
        if saved is not None:
            write_head(saved, scores_Cx3)
    return scores_Cx3


def score_logistic(
    model: LogisticModel, examples: LabelledFeatures, classes: np.ndarray | None, num_classes: int
) -> dict[str, float | int]:
    """top1, top5, loss, images and non_finite. Every label of an image is right, as for the other tasks.

    With `classes` only these are predicted. Rows without a label do not count, and rows that are not finite
    are wrong; they have no loss. A class that was not learned has no chance.
    """
    has_label_N, good_N = (examples.label_NxK >= 0).any(axis=1), examples.is_finite_N
    rows = has_label_N & good_N
    logit_NxY = np.full((int(rows.sum()), num_classes), -np.inf)
    logit_NxY[:, model.classes_Y] = model.logits(examples.x_NxD[rows])
    if classes is not None:
        logit_NxY[:, np.setdiff1d(np.arange(num_classes), classes)] = -np.inf
    label_NxK, number = examples.label_NxK[rows], max(int(has_label_N.sum()), 1)
    own_NxK = np.take_along_axis(logit_NxY, np.maximum(label_NxK, 0), axis=1)
    rank_N = np.full(len(label_NxK), num_classes)
    for label_N, own_N in zip(label_NxK.T, own_NxK.T, strict=True):  # K at once would take K times the memory
        is_before_NxY = np.arange(num_classes) < label_N[:, None]
        ahead_NxY = (logit_NxY > own_N[:, None]) | ((logit_NxY == own_N[:, None]) & is_before_NxY)
        rank_N = np.where(label_N >= 0, np.minimum(rank_N, ahead_NxY.sum(axis=1)), rank_N)
    top = logit_NxY.max(axis=1, keepdims=True)
    log_NxY = logit_NxY - top - np.log(np.exp(logit_NxY - top).sum(axis=1, keepdims=True))
    log_NxK = np.where(label_NxK >= 0, np.take_along_axis(log_NxY, np.maximum(label_NxK, 0), axis=1), 0.0)
    smallest = np.log(np.finfo(float).eps)  # as in sklearn.metrics.log_loss
    loss_N = -np.maximum(log_NxK, smallest).sum(axis=1) / np.maximum((label_NxK >= 0).sum(axis=1), 1)
    found: dict[str, float | int] = {"top1": float((rank_N < 1).sum() / number)}
    if num_classes > 5:
        found["top5"] = float((rank_N < 5).sum() / number)
    found["loss"] = float(loss_N.mean()) if len(loss_N) else float("nan")
    return found | {"images": int(has_label_N.sum()), "non_finite": int((has_label_N & ~good_N).sum())}


def _notes(frozen: FrozenModel, settings: Tasks, scores_Cx3: np.ndarray, num_held_out: int) -> Iterator[str]:
    if settings.logistic.chosen_on == "test":
        yield "C was chosen on the test images, which favours the result"
    else:
        yield (
            f"C was chosen on {num_held_out} images of the training split, drawn with the seed "
            f"{settings.seed}; the classifier was then fitted to the whole split"
        )
    if unfinished := int((scores_Cx3[:, 2] == 0).sum()):
        yield (
            f"for {unfinished} of {len(scores_Cx3)} values of C the fit stopped at "
            f"{settings.logistic.max_iterations} iterations, or where a step no longer lowers the loss"
        )
    if not frozen.model.use_cls:
        yield "the model has no cls token: its features are the mean of the patches"


def _limits(c_Y: np.ndarray, best: int) -> Iterator[str]:
    if best in (0, len(c_Y) - 1) and len(c_Y) > 1:
        yield f"the chosen C={c_Y[best]:g} is at the end of the range: widen tasks.logistic.exponents"


LOGISTIC = ImageTask(measure_logistic)
