"""The data sets of the tasks that need one label for each image: knn, linear and logistic."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from vit_registers.config import Config, Data, Run, Tasks
from vit_registers.data.loaders import (
    EvalSplit,
    Loader,
    check_classes,
    open_also_eval,
    open_data,
    require_random_access,
)
from vit_registers.data.selection import select
from vit_registers.errors import DataError
from vit_registers.evaluation.task import FrozenModel, Measure, Splits, TaskResult
from vit_registers.runtime.exchange import gather


class TaskImages(NamedTuple):
    """The opened splits of a task. Labels of the tests are matched to the classes of `train` by name."""

    train: EvalSplit
    train_data: Data  # the settings that it was opened with
    tests: Mapping[str, EvalSplit]  # the first is that of the result, under ""; then those of data.also_eval

    @property
    def num_classes(self) -> int:
        """The number of classes of the training split."""
        return self.train.loader.num_classes

    @property
    def test_name(self) -> str:
        """NAME:SPLIT of the result."""
        first = self.tests[""]
        return f"{first.loader.name}:{first.split}"

    def num_broken(self, mesh: jax.sharding.Mesh) -> int:
        """The number of images that were left out so far; see num_left_out."""
        return num_left_out([one.loader for one in (self.train, *self.tests.values())], mesh)


class ImageTask(NamedTuple):
    """A Task on images with one label each."""

    measure: Measure[TaskImages]  # on images that are open

    def __call__(
        self,
        frozen: FrozenModel,
        settings: Tasks,
        splits: Splits,
        *,
        folder: Path | None,
        say: Callable[[str], None],
    ) -> TaskResult:
        """The result on these splits, which are opened first."""
        images = open_images(frozen, settings, splits)
        if frozen.mesh.is_multi_process:
            require_random_access([images.train, *images.tests.values()])
        return self.measure(frozen, settings, images, folder=folder, say=say)


def num_left_out(loaders: Iterable[Loader], mesh: jax.sharding.Mesh) -> int:
    """The number of images that could not be decoded and were left out so far, over the processes of `mesh`.

    All of them have to call it.
    """
    unlike = {id(loader): loader for loader in loaders}.values()
    here = [loader.broken_names for loader in unlike]
    return sum(len(frozenset().union(*names)) for names in zip(*gather(lambda: here, mesh), strict=True))


def open_images(frozen: FrozenModel, settings: Tasks, splits: Splits) -> TaskImages:
    """The splits of a task, opened. Raises ConfigError or DataError, one line each, before any is read."""
    name, train_split = splits.train
    is_same = name == splits.test[0]
    data = select(frozen.data, *splits.test)
    if is_same:
        data = dataclasses.replace(data, train_split=train_split)
    tested = _open(frozen, settings, data)
    train_data = dataclasses.replace(select(data, name, train_split), train_split=train_split)
    trained = tested if is_same else _open(frozen, settings, dataclasses.replace(train_data, also_eval=()))
    _require(trained, train_split, is_train=True)
    _require(tested, splits.test[1], is_train=False)
    table = None if is_same else check_classes(tested, trained.num_classes, trained.class_names)
    model = dataclasses.replace(frozen.model, num_classes=trained.num_classes)
    config = Config(model=model, data=dataclasses.replace(data, name=name), run=Run(seed=settings.seed))
    others = open_also_eval(config, trained) if data.also_eval else {}
    first = EvalSplit(tested, splits.test[1], table)
    return TaskImages(EvalSplit(trained, train_split), train_data, {"": first, **others})


def _open(frozen: FrozenModel, settings: Tasks, data: Data) -> Loader:
    return open_data(Config(model=frozen.model, data=data, run=Run(seed=settings.seed)))


def _require(loader: Loader, split: str, *, is_train: bool) -> None:
    """Raises DataError for a split that does not exist, or has no image."""
    flag = "--train_data" if is_train else "--data"
    cure = f"give another split with {flag}=NAME:SPLIT or {flag}=FOLDER:SPLIT"
    try:
        number = loader.num_examples(split)
    except DataError as error:
        raise DataError(f"{'training' if is_train else 'test'} images: {error}; or {cure}") from None
    if number == 0:
        raise DataError(f"split '{split}' of '{loader.name}' has no image: {cure}")
