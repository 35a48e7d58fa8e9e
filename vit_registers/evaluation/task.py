"""The contract of a task, which judges the frozen features of a model: `evaluate --task=NAME`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from vit_registers.config import Data, Model, Tasks
from vit_registers.errors import ConfigError
from vit_registers.evaluation.text_vectors import TextReader
from vit_registers.evaluation.zero_shot.kept import KeptVectors
from vit_registers.models.edits import NO_EDITS, Edits
from vit_registers.models.tokens import TokenLayout
from vit_registers.objectives.base import BACKBONE


class FrozenModel(NamedTuple):
    """A backbone that no task trains, and how its images are prepared."""

    name: str  # as errors and tables name it
    model: Model
    # Preprocessing, normalisation and further splits. Its data set and eval_split are those of Splits.test
    # (not for dense tasks), its train_split is not used; data/selection.py has the settings of another one.
    data: Data
    backbone: Any  # parameters over `mesh`
    mesh: jax.sharding.Mesh
    # Of each forward pass, by its tokens, such as for registers that are added at test time. `model` and
    # `backbone` have these registers.
    edits: Callable[[TokenLayout], Edits] | None = None
    texts: "FrozenTexts | None" = None  # None: a model without a text tower

    def edits_of(self, layout: TokenLayout) -> Edits:
        """The edits of a forward pass with these tokens: ViT(...)(images, edits=...)."""
        return NO_EDITS if self.edits is None else self.edits(layout)


class FrozenTexts(NamedTuple):
    """What a model of images and texts has beside the backbone."""

    params: Any  # all parameters over the mesh, the backbone among them
    reader: TextReader
    kept: KeptVectors | None = None  # where vectors of classes are kept

    def with_backbone(self, backbone: Any) -> "FrozenTexts":
        """The same with the parameters of another backbone."""
        return self._replace(params={**self.params, BACKBONE: backbone})


def require_texts(frozen: FrozenModel, task: str) -> FrozenTexts:
    """FrozenModel.texts. Raises ConfigError if the model has no text tower."""
    if frozen.texts is None:
        raise ConfigError(
            f"--task={task} compares images with texts, and {frozen.name} has no text tower: give a model "
            "that was trained with objective.name=image_text"
        )
    return frozen.texts


class Splits(NamedTuple):
    """The data sets of a task, each as (name or folder, split)."""

    train: tuple[str, str]
    test: tuple[str, str]


class TaskTable(NamedTuple):
    """A table, which is written as CSV."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str | int | float | None, ...]]


class TaskResult(NamedTuple):
    """What a task measured."""

    values: Mapping[str, float | int | str]  # the metrics and what they depend on; printed, and in the JSON
    tables: Mapping[str, TaskTable] = {}
    pictures: Mapping[str, np.ndarray] = {}  # uint8 HxWx3, written as PNG
    notes: Sequence[str] = ()  # lines for the reader


D_contra = TypeVar("D_contra", contravariant=True)


class Measure(Protocol[D_contra]):
    """Measures one thing of a frozen model on data of a type, such as Splits."""

    def __call__(
        self,
        frozen: FrozenModel,
        settings: Tasks,
        data: D_contra,
        /,
        *,
        folder: Path | None,
        say: Callable[[str], None],
    ) -> TaskResult:
        """The result. `folder` keeps what resumes an interrupted call.

        `say` gets lines on what the task is doing, as often as it likes: a terminal shows the newest, and a
        log one from time to time. `pace.py` makes them. What a reader has to know afterwards is in `notes`.

        Raises ConfigError or DataError, one line each, before anything is computed where it can.
        """
        ...


Task = Measure[Splits]  # opens the data itself
