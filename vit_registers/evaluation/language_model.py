"""Bits per byte of a model of bytes over a split, with each byte predicted once."""

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
from vit_registers.objectives.language_model import ANY_ORDER, BITS, NEXT, byte_losses
from vit_registers.training.sharding import batch_sharding, replicated


def eval_passes(settings: LanguageModelSettings, num_patches: int) -> tuple[np.ndarray, np.ndarray]:
    """(hidden_KxP, predicted_KxP): which bytes are hidden and predicted in each of K passes.

    Each byte is predicted in one pass. A decoder predicts all bytes in one pass. Otherwise the places are put
    in a fixed random order, the same for all sequences and models. With predicts=hidden they are dealt to
    K = round(1 / share) passes in turn, each of which hides what it predicts. With predicts=any_order there
    is a pass for each byte, which hides that byte and all that follow in the order.
    """
    if settings.predicts == NEXT:
        return np.ones((1, num_patches), bool), np.ones((1, num_patches), bool)
    rank_P = np.random.default_rng(0).permutation(num_patches)
    if settings.predicts == ANY_ORDER:
        pass_Kx1 = np.arange(num_patches)[:, None]
        return rank_P >= pass_Kx1, rank_P == pass_Kx1
    num_parts = max(1, round(1.0 / settings.share))
    predicted_KxP = rank_P % num_parts == np.arange(num_parts)[:, None]
    return predicted_KxP, predicted_KxP


class LanguageModelEvaluator:
    """The Evaluator of a model of bytes on a split.

    With predicts=next, bits_per_byte are -log2 of the probability of a sequence, divided by its length.
    With any_order they are the same, for the fixed random order of eval_passes. With predicts=hidden they are
    of each byte given those that its pass does not hide, a pseudo-likelihood: the product over bytes is not
    the probability of a text.
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
    passes = eval_passes(settings, token_layout(model).num_patches)

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Any, batch: Batch) -> Sums:
        image, mask_B = batch.views[IMAGE], batch.mask_B

        def one(hidden_and_predicted: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            hidden_P, predicted_P = hidden_and_predicted
            hidden_BxP = jnp.broadcast_to(hidden_P, (len(image), len(hidden_P)))
            counted_BxP = predicted_P[None] & mask_B[:, None]
            loss_BxP, is_right_BxP, is_finite_BxP = byte_losses(settings, model, params, image, hidden_BxP)
            loss = jnp.where(counted_BxP, loss_BxP, 0.0).sum()
            return loss, (counted_BxP & is_right_BxP).sum(), (counted_BxP & ~is_finite_BxP).any(axis=1)

        loss_K, right_K, is_bad_KxB = jax.lax.map(one, jax.tree.map(jnp.asarray, passes))
        count = mask_B.sum() * passes[0].shape[1]
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
