"""How the prototypes of a self-distillation run divide given outputs of cls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.objectives.self_distillation.forward import DINO_HEAD
from vit_registers.objectives.self_distillation.heads import logits
from vit_registers.objectives.self_distillation.losses import STUDENT_TEMPERATURE
from vit_registers.runs.reading import RunCheckpoint
from vit_registers.runtime.mesh import make_mesh, own_mesh

_IMAGES = 256  # at a time, as each has a logit for every prototype


class PrototypeUse(NamedTuple):
    """Over images, for each of Z prototypes: how often it has the largest logit, and its mean probability."""

    top_Z: np.ndarray  # counts
    mean_Z: np.ndarray  # softmax(logits / 0.1), without centring


def prototype_use(
    checkpoint: RunCheckpoint, cls_BxD: np.ndarray, *, params: str | None = None
) -> PrototypeUse | None:
    """The PrototypeUse of outputs of cls by the head of the same copy; None if the run has no such head.

    `params` is that copy, "teacher" or "student", by default the teacher.
    Raises CheckpointError if the parameters are missing.
    """
    is_distilled = checkpoint.config.objective.name == "self_distillation"
    if not is_distilled or checkpoint.is_converted:
        return None
    mesh = own_mesh(make_mesh(checkpoint.config.mesh))
    head = checkpoint.read_params(mesh, params)[DINO_HEAD]

    @jax.jit
    def count(x_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BxZ = logits(head, x_BxD)
        top_BxZ = jax.nn.one_hot(logits_BxZ.argmax(axis=-1), logits_BxZ.shape[-1])
        return top_BxZ.sum(axis=0), jax.nn.softmax(logits_BxZ / STUDENT_TEMPERATURE, axis=-1).sum(axis=0)

    parts = [count(jnp.asarray(cls_BxD[i : i + _IMAGES])) for i in range(0, len(cls_BxD), _IMAGES)]
    top_Z, total_Z = (np.sum([np.asarray(part[k], np.float64) for part in parts], axis=0) for k in (0, 1))
    return PrototypeUse(top_Z.round().astype(int), total_Z / len(cls_BxD))
