"""The Loader contract, and the choice of one by data.loader. Imports TensorFlow only when it is chosen."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from vit_registers.config import Config, Data, check_section, check_value, lookup
from vit_registers.data.batch import Batch
from vit_registers.data.class_names import match
from vit_registers.data.sources.folder import shortened
from vit_registers.errors import ConfigError, DataError


class Loader(Protocol):
    """Batches of labelled images, the same on every run: a pure function of (run.seed, step)."""

    num_classes: int
    class_names: tuple[str, ...]

    @property
    def num_broken(self) -> int:
        """How many different images this process has left out so far, as they could not be decoded."""

    def num_examples(self, split: str) -> int:
        """How many examples the split has, over all processes. Raises DataError for an unknown split."""

    def train_batches(self, start_step: int, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Endless global batches of data.batch_size, from step `start_step` on.

        They are bit for bit those of a run that never stopped; what lies before is not decoded.
        """

    def eval_batches(self, split: str, sharding: jax.sharding.Sharding) -> Iterator[Batch]:
        """Global batches of data.eval_batch_size with each image of the split exactly once.

        The last batches are padded with mask False; all processes get the same number of batches.
        """


def _open_tfdata(config: Config) -> Loader:
    # Read when TensorFlow is imported: oneDNN is of no use to image decoding, and it reports on it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from vit_registers.data.tfdata import TfdataLoader

    return TfdataLoader(config)


def _open_memory(config: Config) -> Loader:
    from vit_registers.data.memory import MemoryLoader

    return MemoryLoader(config)


LOADERS: dict[str, Callable[[Config], Loader]] = {"tfdata": _open_tfdata, "memory": _open_memory}


def open_data(config: Config) -> Loader:
    """The loader that data.loader names, its data set opened.

    Raises ConfigError for settings that cannot work, DataError for a data set that is missing or unfit.
    """
    data, model = config.data, config.model
    open_loader = lookup(LOADERS, data.loader, "data.loader")
    if model.channels not in (1, 3):
        raise ConfigError(f"model.channels={model.channels}: images have 1 or 3")
    check_value("run.seed", config.run.seed)
    check_section("data", data)
    _check_keys(data)
    return open_loader(config)


def _check_keys(data: Data) -> None:
    """Raises ConfigError where keys of features are given of images that are not read from TFDS."""
    if data.name in ("folder", "images"):
        known = {"image_key": None, "label_key": None}
    elif data.name == "digits" and data.loader == "memory":
        known = {"image_key": "image", "label_key": "label"}
    else:
        return
    for name, key in known.items():
        given = getattr(data, name)
        if given not in (None, key):
            what = "has no such feature" if key else "is not a data set of TFDS, which keys are for"
            raise ConfigError(f"data.{name}={given!r}: '{data.name}' {what}: set data.{name} to {key}")


def check_classes(
    config: Config, loader: Loader, trained_names: Sequence[str] | None = None
) -> np.ndarray | None:
    """Which class of the model each class of the data set is, for batch.relabel; None where labels are right.

    Without `trained_names` the classes are compared by number. That labels are others is printed. Raises
    ConfigError where the classes do not fit.
    """
    if trained_names is not None and len(trained_names) == config.model.num_classes:
        where = f"data '{config.data.name}'"
        table = match(loader.class_names, trained_names, where=where)
        if table is not None and jax.process_index() == 0:
            which = f"{len(table)} of the {len(trained_names)} classes that the model is trained on"
            print(f"{where} has {which}, or all in another order: labels are matched by name", flush=True)
        return table
    if loader.num_classes != config.model.num_classes:
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}, but data '{config.data.name}' has "
            f"{loader.num_classes} classes: set --config.model.num_classes={loader.num_classes}; they are "
            f"{shortened(loader.class_names)}"
        )
    return None


class EvalSplit(NamedTuple):
    """A split to evaluate on."""

    loader: Loader
    split: str
    table: np.ndarray | None = None  # of check_classes: labels of the split as classes of the model


def open_others(config: Config, loader: Loader) -> dict[str, EvalSplit]:
    """What data.also_eval names, as {"NAME:SPLIT": ...}; `loader` is that of data.name.

    Classes are those of data.name, or some of them, matched by name. Raises ConfigError or DataError, at
    once, for what cannot be evaluated.
    """
    opened, found = {config.data.name: (loader, None)}, {}
    for entry in config.data.also_eval:
        name, split = entry.split(maxsplit=1)
        if name not in opened:
            other = dataclasses.replace(config, data=dataclasses.replace(config.data, name=name))
            try:
                its = open_data(other)
            except DataError as error:
                raise DataError(f"data.also_eval: {error}; or leave it out") from None
            opened[name] = its, check_classes(other, its, loader.class_names)
        its, table = opened[name]
        its.num_examples(split)
        found[f"{name}:{split}"] = EvalSplit(its, split, table)
    return found
