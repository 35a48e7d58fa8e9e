"""The images that a probe is trained on, and those that it is tested on."""

import itertools
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.report.result import Gap
from vit_registers.analysis.subject import Subject
from vit_registers.data.class_names import match, some
from vit_registers.errors import ConfigError

TO_COMPARE = "norms_LxT"  # the feature by which equal images are found
MANY_IMAGES = 400  # at most, to train on and to test on, for probes on all patches


class ProbeImages(NamedTuple):
    """Some images of a model: their rows in its store, and their classes where these are read."""

    subject: Subject
    row_N: np.ndarray
    label_N: np.ndarray

    def take(self, place_N: np.ndarray) -> "ProbeImages":
        """The images at these places of the part."""
        return ProbeImages(self.subject, self.row_N[place_N], self.label_N[place_N])


class ProbeSets(NamedTuple):
    """The images to train on and those to test on, of which none is in both."""

    train: ProbeImages
    test: ProbeImages

    @property
    def is_split(self) -> bool:
        """Whether both are parts of the images of --data, as there is no --train_data."""
        return self.train.subject is self.test.subject

    def describe(self) -> str:
        """Which images trained and which tested; empty where --data was split, as definitions say so."""
        if self.is_split:
            return ""
        trained, tested = (f"{len(part.row_N)} of the {part.subject.images}" for part in self)
        return f"Trained on {trained}; tested on {tested}"


def labelled_parts(subject: Subject, feature: str, *, what: str, most: int | None = None) -> ProbeSets | Gap:
    """Half of each class to train on and half to test on, or all images of --train_data and all of --data.

    Of the images that `feature` is stored of, or the first `most` of them of each set; those without a class
    are left out. Classes of test images are those of the training images, matched by name. A gap where images
    have no classes, or several each, or classes that the training images lack, so that `what` cannot be
    measured.
    """
    label_N = _classes(subject, feature, "the images", what, most)
    if isinstance(label_N, Gap):
        return label_N
    if subject.train is None:
        row_N = np.flatnonzero(label_N >= 0)
        train, test = (row_N[half] for half in halves_by_class(label_N[row_N]))
        return ProbeSets(
            ProbeImages(subject, train, label_N[train]), ProbeImages(subject, test, label_N[test])
        )
    own_N = _classes(subject.train, feature, "the images of --train_data", what, most)
    if isinstance(own_N, Gap):
        return own_N
    ours, theirs = subject.class_names, subject.train.class_names
    try:
        table = match(ours, theirs, where="--data")
    except ConfigError:
        return Gap(
            f"{subject.name}: --data has classes ({some(ours)}) that --train_data has not ({some(theirs)}): "
            "give two parts of one data set"
        )
    label_N = label_N if table is None else np.where(label_N < 0, label_N, table[np.maximum(label_N, 0)])
    train, test = np.flatnonzero(own_N >= 0), np.flatnonzero(label_N >= 0)
    return ProbeSets(
        ProbeImages(subject.train, train, own_N[train]), ProbeImages(subject, test, label_N[test])
    )


def _classes(subject: Subject, feature: str, images: str, what: str, most: int | None) -> np.ndarray | Gap:
    label_N = np.asarray(subject.store.read("label"))[: len(subject.store.read(feature))][:most]
    if label_N.ndim > 1:
        return Gap(f"{subject.name}: {images} have several labels each, {what} requires one")
    if not (label_N >= 0).any():
        return Gap(f"{subject.name}: {images} have no classes, which {what} requires")
    return label_N


def halves_by_class(label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images to train on and to test on, half of each class, without a limit."""
    mixed = np.random.default_rng(0).permutation(len(label_N))
    mixed = mixed[np.argsort(label_N[mixed], kind="stable")]
    train, test = [], []
    for _, group in itertools.groupby(mixed, key=lambda i: label_N[i]):
        members = list(group)
        half = len(members) - len(members) // 2
        train, test = train + members[:half], test + members[half:]
    return np.sort(np.array(train, int)), np.sort(np.array(test, int))


def random_parts(subject: Subject, feature: str) -> ProbeSets:
    """A half to train on and a half to test on, or images of --train_data and of --data; MANY_IMAGES at most.

    Drawn at random from the images that `feature` is stored of.
    """
    count = len(subject.store.read(feature))
    if subject.train is None:
        train, test = random_halves(count)
    else:
        counts = (len(subject.train.store.read(feature)), count)
        train, test = (np.sort(np.random.default_rng(0).permutation(one)[:MANY_IMAGES]) for one in counts)
    none = np.zeros(0, int)
    return ProbeSets(ProbeImages(subject.train or subject, train, none), ProbeImages(subject, test, none))


def random_halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of images to train on and to test on, of `count` images; MANY_IMAGES at most each."""
    mixed = np.random.default_rng(0).permutation(count)
    half = count - count // 2
    return np.sort(mixed[:half][:MANY_IMAGES]), np.sort(mixed[half:][:MANY_IMAGES])


def outliers_alike(part: ProbeImages, parts: ProbeSets, rule: str) -> np.ndarray:
    """is_outlier_BxP of all images of the subject of `part`, above the threshold of the images of --data.

    By a rule of batches, each batch has its own threshold, whichever images it is of.
    """
    found = parts.test.subject.outliers(rule)
    if part.subject is parts.test.subject:
        return found.is_outlier_BxP
    if found.is_by_batch:
        return part.subject.outliers(rule).is_outlier_BxP
    norm_BxP = part.subject.patch_norms()
    return np.zeros(norm_BxP.shape, bool) if found.threshold is None else norm_BxP > found.threshold


def num_shared(subject: Subject) -> int:
    """The number of images of --data whose norms are, bit for bit, those of an image of --train_data."""
    assert subject.train is not None
    seen = {np.ascontiguousarray(one).tobytes() for one in subject.train.store.read(TO_COMPARE)}
    return sum(np.ascontiguousarray(one).tobytes() in seen for one in subject.store.read(TO_COMPARE))
