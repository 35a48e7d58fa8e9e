"""Classes of a data set beside those that a model was trained on, matched by name. No JAX."""

from collections.abc import Sequence

import numpy as np

from vit_registers.errors import ConfigError

_NUM_SHOWN = 3


def match(names: Sequence[str], trained: Sequence[str], *, where: str) -> np.ndarray | None:
    """Which class of training each class of `names` is, int32; None where labels mean the same in both.

    Data sets without names have the numbers from 0 on: beside other names they are compared by count.
    Raises ConfigError, with the first differences, where a class is not among those of training; `where` is
    the data set, as errors name it.
    """
    names, trained = tuple(names), tuple(trained)
    if names == trained:
        return None
    if len(names) == len(trained) and (_is_numbered(names) or _is_numbered(trained)):
        return None
    number = {name: i for i, name in enumerate(trained)}
    unknown = [name for name in names if name not in number]
    if unknown:
        raise ConfigError(
            f"{where} has {len(unknown)} of {len(names)} classes that the model was not trained on: "
            f"{some(unknown)}; it was trained on {len(trained)}: {some(trained)}"
        )
    twice = [name for name in names if trained.count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: several classes of training are called {some(twice)}: names cannot tell")
    return np.array([number[name] for name in names], np.int32)


def some(names: Sequence[str]) -> str:
    """The first names, quoted, and how many more there are."""
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(map(repr, names[:_NUM_SHOWN])) + more


def _is_numbered(names: tuple[str, ...]) -> bool:
    return names == tuple(map(str, range(len(names))))
