"""Frozen features of a model unedited, with a test-time register, and without outliers, side by side."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vit_registers.analysis.experiments import edited_models
from vit_registers.analysis.experiments.edited_models import FROZEN, UNEDITED, Trial
from vit_registers.analysis.experiments.train_test import ProbeImages, ProbeSets, labelled_parts
from vit_registers.analysis.features.finite import NotFiniteError
from vit_registers.analysis.features.interventions import NO_INTERVENTION, Intervention, remove_above
from vit_registers.analysis.options import Options
from vit_registers.analysis.report.headline import share_of_images
from vit_registers.analysis.report.result import Gap, Rows, counted, number
from vit_registers.analysis.subject import Subject

WITH_REGISTER, REMOVED = "with a test-time register", "with outliers removed"
EDITS = (
    f"'{WITH_REGISTER.capitalize()}': the neurons that test-time-registers chose on the images of --data are "
    f"moved to one added register. '{REMOVED.capitalize()}': before the first block whose input has them, "
    "before each later one and after the last, patches whose norm is above the threshold of the outliers are "
    "replaced by the mean of the image's other patches; cls stays where outliers begin in the last block."
)


class Arrays(NamedTuple):
    """Features of images to train on and to test on; cls (or the mean patch) and the mean patch."""

    train_Nx2xD: np.ndarray
    train_label_N: np.ndarray
    test_Mx2xD: np.ndarray
    test_label_M: np.ndarray


class Variants(NamedTuple):
    """The interventions by what they do, and why others are not possible."""

    interventions: Mapping[str, Intervention]
    gaps: tuple[str, ...]


def find_variants(subject: Subject, options: Options) -> Variants:
    """The unedited model, and where it has outliers, one with a test-time register and one without them."""
    made, gaps = {UNEDITED: NO_INTERVENTION}, []
    trial = edited_models.start_trial(subject, options)
    if isinstance(trial, Trial):
        _, count = trial.sweep_counts()
        made[WITH_REGISTER] = trial.moved(trial.found.neuron_Ex2[:count])
        found = trial.found
    else:
        gaps.append(f"{trial.reason}, so there is no row '{WITH_REGISTER}'")
        found = edited_models.find_neurons(subject, options)
    if found is None:
        gaps[-1:] = [f"{subject.name}: no outliers by {options.rule}, so only the unedited model is measured"]
    else:
        values = {"threshold": np.float32(found.threshold), "first": np.int32(found.last_block + 1)}
        made[REMOVED] = Intervention(name="without", edits=remove_above, values=values, rows={})
    return Variants(made, tuple(gaps))


def for_images(intervention: Intervention, number: int) -> Intervention:
    """The intervention on other images; its rows must be the same for every image."""
    rows = {name: np.repeat(row[:1], number, axis=0) for name, row in intervention.rows.items()}
    return Intervention(
        name=intervention.name,
        edits=intervention.edits,
        values=intervention.values,
        rows=rows,
        num_registers=intervention.num_registers,
    )


def stored_arrays(parts: ProbeSets) -> Arrays:
    """The features of the unedited model, of all images of both parts."""
    train, test = (np.asarray(part.subject.store.read(FROZEN))[part.row_N] for part in parts)
    return Arrays(train, parts.train.label_N, test, parts.test.label_N)


def variant_arrays(parts: ProbeSets, intervention: Intervention, options: Options) -> Arrays:
    """The features of the model under an intervention, of the first images that edited models are shown.

    Raises NotFiniteError if they are not finite.
    """
    if intervention is NO_INTERVENTION:
        return stored_arrays(parts)
    train, test = (_rerun(part, intervention, options) for part in parts)
    return Arrays(train, parts.train.label_N, test, parts.test.label_N)


def _rerun(part: ProbeImages, intervention: Intervention, options: Options) -> np.ndarray:
    number = min(len(part.subject.store.read("image_HxWxC")), options.num_edited)
    store = part.subject.rerun(for_images(intervention, number), (FROZEN,), options.num_edited)
    return np.asarray(store.read(FROZEN))[part.row_N]


Score = Callable[..., float | None]  # in %, of a kind of features: see compare_variants


def compare_variants(
    subject: Subject, options: Options, score: Score, *, what: str, table: str
) -> Rows | Gap:
    """The rows of an experiment that scores cls and the mean patch of each variant on the same images.

    `score` gets the kind of features, those to train on with their labels, and those to test on with theirs.
    """
    parts = labelled_parts(subject, "image_HxWxC", what=what, most=options.num_edited)
    if isinstance(parts, Gap):
        return parts
    if len(np.unique(parts.train.label_N)) < 2 or not len(parts.test.row_N):
        return Gap(f"{subject.name}: {what} requires two classes, with images to train on and to test on")
    variants = find_variants(subject, options)
    gaps, rows = list(variants.gaps), []
    kinds = ("cls", "mean patch") if subject.layout.has_cls else ("mean patch",)
    for name, intervention in variants.interventions.items():
        try:
            arrays = variant_arrays(parts, intervention, options)
        except NotFiniteError as error:
            gaps.append(str(error))
            continue
        for place, kind in enumerate(kinds):
            value = score(
                kind,
                arrays.train_Nx2xD[:, place],
                arrays.train_label_N,
                arrays.test_Mx2xD[:, place],
                arrays.test_label_M,
            )
            error = share_of_images("", value, len(arrays.test_label_M)).error
            rows.append((kind, name, value, error, len(arrays.train_label_N), len(arrays.test_label_M)))
    first = [row for row in rows if row[0] == kinds[0]]
    clauses = ", ".join(f"{number(value, '%')} {name}" for _, name, value, *_ in first)
    return Rows(
        tables={table: rows},
        text=f"the accuracy from {kinds[0]} is {clauses}",
        compared=first[0][2],
        count=counted(len(parts.test.row_N), "test image"),
        gaps=gaps,
        images=parts.describe(),
    )
