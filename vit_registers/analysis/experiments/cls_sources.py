"""The part of cls that comes from each token group by the attention of the last block. No JAX."""

import numpy as np

from vit_registers.analysis.subject import Subject

FULL = "full"


def cls_parts(subject: Subject, images: slice | np.ndarray) -> dict[str, np.ndarray]:
    """The part of cls from each token group, and FULL, their sum: BxD each."""
    names = tuple(subject.layout.groups)
    terms_BxExD = subject.store.read("terms_ExD")[images][:, : len(names)].astype(np.float64)
    return {FULL: terms_BxExD.sum(axis=1)} | {name: terms_BxExD[:, i] for i, name in enumerate(names)}
