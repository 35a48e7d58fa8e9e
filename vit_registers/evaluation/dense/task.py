"""What the tasks that need a label for each pixel have in common: segmentation and depth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vit_registers.config import Tasks
from vit_registers.data.selection import require_split
from vit_registers.evaluation.dense.baselines import POSITION, RANDOM, position_features, random_backbone
from vit_registers.evaluation.dense.saved import SavedHead, checksum
from vit_registers.evaluation.dense.training import Features
from vit_registers.evaluation.features import EditsOf
from vit_registers.evaluation.task import FrozenModel, Splits, Task, TaskResult
from vit_registers.strict_json import dumps

P = TypeVar("P")
M = TypeVar("M")
Scores = Callable[[Any], Mapping[str, float]]  # parameters of the backbone -> {metric: value}


class DenseTask(NamedTuple):
    """A Task on images with a label for each pixel."""

    measure: Task  # the model beside the baselines
    # The metrics of the model alone, for parameters that change. The data are opened, and the programs are
    # compiled once; of the backbone of the frozen model only the shapes are read. Raises as `measure`, but
    # before anything is computed.
    open_scores: Callable[[FrozenModel, Tasks, Splits], Scores]
    metrics: tuple[str, ...]  # of open_scores, besides "images" and "non_finite"

    def __call__(
        self,
        frozen: FrozenModel,
        settings: Tasks,
        splits: Splits,
        *,
        folder: Path | None,
        say: Callable[[str], None],
    ) -> TaskResult:
        """The result on these splits."""
        return self.measure(frozen, settings, splits, folder=folder, say=say)


class Row(NamedTuple):
    """A row of the table: a head, and what it is trained on."""

    name: str
    features: Features
    backbone: Any
    is_resumable: bool = True

    def saved(self, folder: Path | None, task: str, about: Mapping[str, Any]) -> SavedHead | None:
        """Where its head is kept; `about` is what that depends on, but for the row itself and its edits."""
        if folder is None or not self.is_resumable:
            return None
        name = self.name if self.name in (POSITION, RANDOM) else "model"
        identity = dumps({**about, "row": name, "parameters": checksum(self.backbone)}, sort_keys=True)
        return SavedHead(folder / f"{task}_{name.replace(' ', '_')}.npz", identity)


def table_rows(
    frozen: FrozenModel,
    features_of: Callable[[EditsOf | None], Features],
    *,
    seed: int,
    grid_of: Callable[[Features], tuple[int, int]] | None = None,
) -> tuple[Row, ...]:
    """The model, new parameters of the same architecture, and the position of each patch alone.

    `grid_of` says on which grid the positions are one-hot; see position_features.
    """
    own = features_of(frozen.edits)
    plain = own if frozen.edits is None else features_of(None)
    grid = None if grid_of is None else grid_of(own)
    return (
        Row(frozen.name, own, frozen.backbone, is_resumable=frozen.edits is None),
        Row(RANDOM, plain, random_backbone(frozen.model, frozen.mesh, seed=seed)),
        Row(POSITION, position_features(own, frozen.backbone, grid=grid), {}),
    )


def measure_rows(
    rows: Sequence[Row], program_of: Callable[[Features, Any], P], measure: Callable[[Row, P], M]
) -> dict[str, M]:
    """measure(row, program) by name of the row. Rows with the same features share a program."""
    programs: dict[Features, P] = {}
    found: dict[str, M] = {}
    for row in rows:
        if row.features not in programs:
            programs[row.features] = program_of(row.features, row.backbone)
        found[row.name] = measure(row, programs[row.features])
    return found


def splits_of_settings(task: str, settings: Tasks, train_data: str | None = None) -> Splits | None:
    """The data that tasks.<task>.data and train_data select; None if the first is not set.

    `train_data`, NAME:SPLIT, overrides the second. Raises ConfigError for a value without a split.
    """
    own = getattr(settings, task)
    if own.data is None:
        return None
    test = require_split(own.data, flag=f"tasks.{task}.data")
    if train_data is not None:
        return Splits(require_split(train_data, flag="--train_data"), test)
    if getattr(own, "train_data", None) is not None:  # zero-shot segmentation is not trained
        return Splits(require_split(own.train_data, flag=f"tasks.{task}.train_data"), test)
    return Splits((test[0], "train"), test)
