"""Bits per byte of a language model over a split, with each byte predicted once."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.config import Data, LanguageModelSettings, Model, ObjectiveSettings
from vit_registers.data.batch import IMAGE, Batch
from vit_registers.data.loaders import EvalSplit
from vit_registers.data.prefetch import in_turn
from vit_registers.evaluation.base import Evaluator, EvaluatorKind
from vit_registers.models.vit import token_layout
from vit_registers.objectives.base import Sums, add_sums
from vit_registers.objectives.language_model import BITS, NEXT, byte_losses
from vit_registers.training.sharding import batch_sharding, replicated


def predicted_parts(settings: LanguageModelSettings, num_patches: int) -> np.ndarray:
    """predicted_KxP: which bytes are predicted in each of K passes; each byte in one of them.

    For hidden bytes K = round(1 / share): a fixed random permutation of the places is dealt to the passes in
    turn, the same for all models. A decoder predicts all bytes in one pass.
    """
    num_parts = 1 if settings.predicts == NEXT else max(1, round(1.0 / settings.share))
    part_P = np.random.default_rng(0).permutation(num_patches) % num_parts
    return part_P == np.arange(num_parts)[:, None]


class LanguageModelEvaluator:
    """The Evaluator of a language model on a split.

    With predicts=next, bits_per_byte are -log2 of the probability of a sequence by its length. With
    predicts=hidden they are of each byte given those that its pass does not hide, a pseudo-likelihood: the
    product over bytes is not the probability of a text.
    """

    def __init__(
        self, settings: LanguageModelSettings, model: Model, split: EvalSplit, mesh: jax.sharding.Mesh
    ) -> None:
        self._split, self._layout = split, batch_sharding(mesh)
        self._sums = _make_sums(settings, model, mesh)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"bits_per_byte", "perplexity" (2 to the power of these), "accuracy", "images", "non_finite"}.

        "images" is the number of sequences; in "non_finite" ones, a byte has an output that is not finite.
        """
        batches = self._split.loader.eval_batches(self._split.split, self._layout)
        started = (self._sums(params, batch) for batch in batches)
        sums = functools.reduce(add_sums, map(jax.device_get, in_turn(started)))
        means = {name: float(total) / max(int(count), 1) for name, (total, count) in sums.items()}
        bits = means["bits_per_byte"]
        return {
            "bits_per_byte": bits,
            "perplexity": float(np.exp2(bits)),
            "accuracy": means["accuracy"],
            "images": int(sums["non_finite"][1]),
            "non_finite": int(sums["non_finite"][0]),
        }


@functools.lru_cache(maxsize=8)  # compiled once for all splits
def _make_sums(settings: LanguageModelSettings, model: Model, mesh: jax.sharding.Mesh) -> Any:
    """The compiled function (params, batch) -> Sums of the batch."""
    predicted_KxP = predicted_parts(settings, token_layout(model).num_patches)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Any, batch: Batch) -> Sums:
        image, mask_B = batch.views[IMAGE], batch.mask_B

        def one(predicted_P: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            predicted_BxP = jnp.broadcast_to(predicted_P, (len(image), len(predicted_P)))
            counted_BxP = predicted_BxP & mask_B[:, None]
            loss_BxP, is_right_BxP, is_finite_BxP = byte_losses(settings, model, params, image, predicted_BxP)
            loss = jnp.where(counted_BxP, loss_BxP, 0.0).sum()
            return loss, (counted_BxP & is_right_BxP).sum(), (counted_BxP & ~is_finite_BxP).any(axis=1)

        loss_K, right_K, is_bad_KxB = jax.lax.map(one, jnp.asarray(predicted_KxP))
        count = mask_B.sum() * predicted_KxP.shape[1]
        return {
            "bits_per_byte": (loss_K.sum() * BITS, count),
            "accuracy": (right_K.sum(), count),
            "non_finite": (is_bad_KxB.any(axis=0).sum(), mask_B.sum()),
        }

    return sums


def _is_for(objective: ObjectiveSettings, model: Model) -> bool:
    del model
    return objective.name == "language_model"


def _make(
    objective: ObjectiveSettings,
    model: Model,
    data: Data,
    splits: Mapping[str, EvalSplit],
    mesh: jax.sharding.Mesh,
) -> dict[str, Evaluator]:
    del data
    settings = objective.language_model
    return {name: LanguageModelEvaluator(settings, model, split, mesh) for name, split in splits.items()}


LANGUAGE_MODEL = EvaluatorKind(_is_for, _make)
