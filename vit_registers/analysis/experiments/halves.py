"""The images that probes are trained on and tested on, the same for every model."""

import itertools

import numpy as np

MANY_IMAGES = 400  # at most, to train on and to test on, for probes on all patches


def random_halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images to train on and to test on, of `count` images; MANY_IMAGES at most each."""
    mixed = np.random.default_rng(0).permutation(count)
    half = count - count // 2
    return np.sort(mixed[:half][:MANY_IMAGES]), np.sort(mixed[half:][:MANY_IMAGES])


def halves_by_class(label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images to train on and to test on, half of each class, without a limit."""
    mixed = np.random.default_rng(0).permutation(len(label_N))
    mixed = mixed[np.argsort(label_N[mixed], kind="stable")]
    train, test = [], []
    for _, group in itertools.groupby(mixed, key=lambda i: label_N[i]):
        members = list(group)
        half = len(members) - len(members) // 2
        train, test = train + members[:half], test + members[half:]
    return np.sort(train), np.sort(test)
