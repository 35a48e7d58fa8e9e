"""The Loader contract, and the loader that data.loader selects. TensorFlow is imported only with 'tfdata'."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from vit_registers.config import Config, Data, check_section, check_value, image_size, lookup
from vit_registers.data.batch import Batch, Training
from vit_registers.data.caption_tokens import CaptionTokens
from vit_registers.data.class_names import match
from vit_registers.data.ops.strings import Target
from vit_registers.data.sources.catalog import SOURCES
from vit_registers.data.sources.listing import shortened
from vit_registers.errors import ConfigError, DataError, missing_package, require_extra


class Loader(Protocol):
    """Batches of labelled images, the same on every run: a pure function of (run.seed, step)."""

    name: str  # data.name
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def broken_names(self) -> frozenset[str]:
        """The names of the images that this process has left out so far as broken."""
        ...

    @property
    def texts(self) -> CaptionTokens | None:
        """What makes the target TOKENS of training batches, with its tokenizer; None without Texts."""
        ...

    def captions(self, split: str) -> Callable[[int], list[str]] | None:
        """A function from the number of an image of the split to its captions; None if the data has none."""
        ...

    @property
    def has_random_access(self) -> bool:
        """Whether any image can be read by its number. Otherwise several processes read in another order."""
        ...

    def num_examples(self, split: str) -> int:
        """The number of examples in the split, over all processes. Raises DataError for an unknown split."""
        ...

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches of data.batch_size, from step `start_step` on.

        They are bit for bit those of an uninterrupted run. Examples of earlier steps are not decoded.
        """
        ...

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches of data.eval_batch_size with each image of the split exactly once.

        The last batches are padded with mask False. All processes get the same number of batches. With a
        sharding over the devices of one process, each process that calls it reads all images.
        """
        ...


def _open_tfdata(
    data: Data, target: Target, seed: int, groups: int, training: Training | None, needs_labels: bool = True
) -> Loader:
    cure = "set data.loader='memory' for images that fit into memory" if data.name in SOURCES else ""
    require_extra(
        "data", "tensorflow", what=f"data.loader='tfdata' (data.name={data.name!r})", otherwise=cure
    )
    # TensorFlow reads this at import. Decoding does not use oneDNN, which would log messages.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Images are processed in parallel. Otherwise XLA also divides the work on an image among threads, which
    # wake each other four times per image.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    from vit_registers.data.tfdata import TfdataLoader

    return TfdataLoader(data, target, seed=seed, groups=groups, training=training, needs_labels=needs_labels)


def _open_memory(
    data: Data, target: Target, seed: int, groups: int, training: Training | None, needs_labels: bool = True
) -> Loader:
    from vit_registers.data.memory import MemoryLoader

    return MemoryLoader(data, target, seed=seed, groups=groups, training=training, needs_labels=needs_labels)


def _open_pil(
    data: Data, target: Target, seed: int, groups: int, training: Training | None, needs_labels: bool = True
) -> Loader:
    from vit_registers.data.pil_loader import PilLoader

    return PilLoader(data, target, needs_labels=needs_labels)


# (data, target, seed, groups, training, whether images must have a class) -> loader
LOADERS: dict[str, Callable[..., Loader]] = {
    "tfdata": _open_tfdata,
    "memory": _open_memory,
    "pil": _open_pil,
}


def open_data(config: Config, training: Training | None = None, *, needs_labels: bool = True) -> Loader:
    """The loader data.loader, with its data set opened; `training` are the views of training batches.

    By default a training batch has one view, made by data.train_ops. Unless `needs_labels`, images may have
    no class: the label is -1, and class_names may be empty.

    Raises ConfigError for invalid settings, DataError for a data set that is missing or unfit.
    """
    data, model = config.data, config.model
    open_loader = lookup(LOADERS, data.loader, "data.loader")
    if model.channels not in (1, 3):
        raise ConfigError(f"model.channels={model.channels}: must be 1 or 3 for images")
    check_value("run.seed", config.run.seed)
    check_section("data", data)
    groups = config.objective.classification.mix_groups
    target = Target(*image_size(config), model.channels)
    return open_loader(data, target, config.run.seed, groups, training, needs_labels)


def loader_to_evaluate(data: Data) -> Data:
    """The settings with data.loader='pil' instead of 'tfdata' if TensorFlow is not installed.

    Prints a line then. Data sets of TFDS require TensorFlow in any case.
    """
    if data.loader != "tfdata" or missing_package("tensorflow") is None:
        return data
    if jax.process_index() == 0:
        print("TensorFlow is not installed: images are read with data.loader='pil'", file=sys.stderr)
    return dataclasses.replace(data, loader="pil")


def check_classes(
    loader: Loader, num_classes: int, trained_names: Sequence[str] | None = None
) -> np.ndarray | None:
    """The class of the model for each class of the data set, for batch.relabel; None if labels are the same.

    `num_classes` is that of the model. Without `trained_names`, classes are compared by number. Prints a line
    if labels differ. Raises ConfigError if the classes do not fit.
    """
    where = f"data '{loader.name}'"
    if trained_names is not None and len(trained_names) == num_classes:
        table = match(loader.class_names, trained_names, where=where)
        if table is not None and jax.process_index() == 0:
            which = f"{len(table)} of the {len(trained_names)} classes that the model is trained on"
            print(f"{where} has {which}, or all in another order: labels are matched by name", flush=True)
        return table
    if loader.num_classes != num_classes:
        raise ConfigError(
            f"model.num_classes={num_classes}, but {where} has {loader.num_classes} classes: set "
            f"--config.model.num_classes={loader.num_classes}; they are {shortened(loader.class_names)}"
        )
    return None


class EvalSplit(NamedTuple):
    """A split to evaluate on."""

    loader: Loader
    split: str
    table: np.ndarray | None = None  # of check_classes: labels of the split as classes of the model


def require_random_access(splits: Iterable[EvalSplit]) -> None:
    """Raises DataError if one of them has none: rows of several processes would not be in its order."""
    for split in splits:
        if not split.loader.has_random_access:
            raise DataError(
                f"data '{split.loader.name}' is prepared as TFRecord files, which several processes cannot "
                "share in order: prepare it again with vit-registers prepare, or start one process"
            )


def open_also_eval(config: Config, loader: Loader) -> dict[str, EvalSplit]:
    """The splits of data.also_eval, as {"NAME:SPLIT": ...}; `loader` is that of data.name.

    Their classes are matched by name to those of data.name, and may be some of them. Raises ConfigError or
    DataError, before any evaluation, for a split that cannot be evaluated.
    """
    opened: dict[str, tuple[Loader, np.ndarray | None]] = {config.data.name: (loader, None)}
    found: dict[str, EvalSplit] = {}
    for entry in config.data.also_eval:
        name, split = entry.split(maxsplit=1)
        if name not in opened:
            settings = dataclasses.replace(config, data=dataclasses.replace(config.data, name=name))
            try:
                other = open_data(settings)
            except DataError as error:
                raise DataError(f"data.also_eval: {error}; or leave it out") from None
            opened[name] = other, check_classes(other, config.model.num_classes, loader.class_names)
        other, table = opened[name]
        other.num_examples(split)
        found[f"{name}:{split}"] = EvalSplit(other, split, table)
    return found
