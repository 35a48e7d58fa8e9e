"""Features of edited models, and how far they are from those of the unedited model."""

from typing import NamedTuple

import numpy as np

from vit_registers.analysis.features.interventions import NO_INTERVENTION, Intervention
from vit_registers.analysis.features.store import Store
from vit_registers.analysis.measures.severity import cosine_similarity, summarize_values
from vit_registers.analysis.subject import Options, Subject

BASE = ("norms_LxT", "image_HxWxC")  # features that the store of a subject needs for its edited models
NO_CHOICE = -2  # neither a class nor a label: -1 is that of images without one


class Change(NamedTuple):
    """Outputs compared with those of the unedited model; None where the model has no such output.

    Cosines are None as well where that output is zero in every image.
    """

    cls_cosine: float | None
    registers_cosine: float | None  # of its own registers, mean over them
    agreement: float | None  # how often the head's first choice stays
    accuracy: float | None  # of the head, where the images' classes are its own


def outputs_of(subject: Subject) -> tuple[str, ...]:
    """The features that `change` compares."""
    extras = ["extras_ExD"] if subject.layout.registers.stop else []
    return ("norms_LxT", *extras, *(["logits_Y"] if subject.model.num_classes else []))


def unedited(subject: Subject, options: Options, names: tuple[str, ...]) -> Store:
    """Features of the unedited model, on the images that edited ones are shown."""
    return subject.rerun(NO_INTERVENTION, names, options.num_edited)


def flagged(subject: Subject, options: Options) -> tuple[np.ndarray, float | None]:
    """(is_outlier_BxP of these images, the threshold), by the rule over all images."""
    found = subject.outliers(options.rule)
    return found.is_outlier_BxP[: options.num_edited], found.threshold


def edited(subject: Subject, options: Options, intervention: Intervention, names: tuple[str, ...]) -> Store:
    """Features of the model under an intervention, on the same images."""
    return subject.rerun(intervention, names, options.num_edited)


def change(subject: Subject, before: Store, after: Store, images: np.ndarray) -> Change:
    """The effect of an intervention on cls, registers and the head's choice, on images of those indices."""
    layout, own = subject.layout, subject.layout.registers.stop
    cls = registers = agreement = accuracy = None
    if own:
        cosine_BxE = cosine_similarity(
            before.read("extras_ExD")[images], after.read("extras_ExD")[images][:, :own]
        )
        cls = summarize_values(cosine_BxE[:, layout.cls]).mean
        registers = summarize_values(cosine_BxE[:, layout.registers]).mean
    if subject.model.num_classes:
        first, then = (choices(store.read("logits_Y")[images]) for store in (before, after))
        agreement = float(((first == then) & (then != NO_CHOICE)).mean())
        accuracy = accuracy_of(subject, then, images)
    return Change(cls, registers, agreement, accuracy)


def choices(logits_BxY: np.ndarray) -> np.ndarray:
    """The class with the highest logit of each image; NO_CHOICE where a logit is not finite, as argmax would
    take NaN for the highest."""
    return np.where(np.isfinite(logits_BxY).all(1), logits_BxY.argmax(1), NO_CHOICE)


def accuracy_of(subject: Subject, choice_B: np.ndarray, images: np.ndarray) -> float | None:
    """How often the head's choice is right, None where the images' classes are not the head's."""
    label_B = subject.head_labels()
    return None if label_B is None else float((choice_B == label_B[images]).mean())
