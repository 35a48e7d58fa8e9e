"""What experiments on images and texts share: the text tower of a model, and the vectors of its images."""

import math
from collections.abc import Iterator

import jax
import numpy as np

from vit_registers.analysis.features.interventions import NO_INTERVENTION
from vit_registers.analysis.report.result import Gap
from vit_registers.analysis.subject import Subject
from vit_registers.evaluation.task import FrozenModel, FrozenTexts
from vit_registers.evaluation.text_vectors import ImageVectors, projected_vectors
from vit_registers.training.sharding import batch_sharding

POOLED = "pooled_D"  # the feature that stored_vectors reads
CLIP = "arXiv:2103.00020"
_IMAGES = 256  # in one program


def model_with_texts(subject: Subject) -> tuple[FrozenModel, FrozenTexts] | Gap:
    """The model with its text tower; a gap if that cannot be used."""
    assert subject.frozen is not None
    frozen = subject.frozen(NO_INTERVENTION)
    if frozen.texts is None:
        return Gap(f"{subject.name}: {subject.unread_texts or 'it has no text tower'}")
    return frozen, frozen.texts


def stored_vectors(subject: Subject, frozen: FrozenModel, texts: FrozenTexts) -> Iterator[ImageVectors]:
    """The vectors of all images of the store, in batches, from what the model pooled."""
    layout = batch_sharding(frozen.mesh)
    size = math.ceil(_IMAGES / layout.num_devices) * layout.num_devices
    pooled_NxD = subject.store.read(POOLED)
    label_NxK = np.asarray(subject.store.read("label")).reshape(len(pooled_NxD), -1)
    for start in range(0, len(pooled_NxD), size):
        x_BxD, label_BxK = (np.asarray(x[start : start + size]) for x in (pooled_NxD, label_NxK))
        missing = size - len(x_BxD)
        mask_B = np.arange(size) < len(x_BxD)
        x_BxD = np.pad(x_BxD, ((0, missing), (0, 0)), mode="edge")
        label_BxK = np.pad(label_BxK, ((0, missing), (0, 0)), constant_values=-1)
        image_BxE = projected_vectors(texts.params, jax.device_put(x_BxD, layout), frozen.mesh)
        yield ImageVectors(image_BxE, *jax.device_put((label_BxK, mask_B), layout))
