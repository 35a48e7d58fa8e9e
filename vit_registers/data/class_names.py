"""Matching of a data set's classes to those of a trained model, by name. No JAX."""

from collections.abc import Sequence

import numpy as np

from vit_registers.errors import ConfigError

_NUM_SHOWN = 3


def match(names: Sequence[str], trained: Sequence[str], *, where: str) -> np.ndarray | None:
    """The index in `trained` of each class of `names`, int32; None if the labels of both are the same.

    Data sets without class names have the numbers from 0 on. They are compared with names by the number of
    classes. Raises ConfigError, with the first differences, if a class is not among those of training;
    `where` is the data set as errors name it.
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
        raise ConfigError(
            f"{where}: several classes of training have the name {some(twice)}: names must be unique"
        )
    return np.array([number[name] for name in names], np.int32)


def names_to_match(
    names: Sequence[str], theirs: Sequence[str] | None, *, is_converted: bool
) -> Sequence[str] | None:
    """The names of a head's classes for `match`, or None if classes are to be compared by number.

    Weights of other code bases may name the classes of a data set otherwise: ImageNet's "tench" is n01440764
    in TFDS. If as many classes have no name in common, they are compared by number.
    """
    if theirs is None or not is_converted or len(names) != len(theirs) or set(names) & set(theirs):
        return theirs
    return None


def some(names: Sequence[str]) -> str:
    """The first names, quoted, and the number of further ones."""
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(map(repr, names[:_NUM_SHOWN])) + more


def _is_numbered(names: tuple[str, ...]) -> bool:
    return names == tuple(map(str, range(len(names))))
