"""The training of a grid of linear classifiers on features, and its evaluation."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_registers.data.prefetch import in_turn
from vit_registers.evaluation.classification import classification_sums
from vit_registers.evaluation.dense.saved import SavedHead, restore_head, write_head
from vit_registers.evaluation.linear.grid import (
    Heads,
    grid_logits,
    grid_step,
    init_heads,
    linear_inputs,
    rates_at,
)
from vit_registers.evaluation.linear.host_features import FeatureBatch
from vit_registers.evaluation.linear.plan import Plan
from vit_registers.evaluation.pace import Pace
from vit_registers.training.sharding import put_same, replicated

_SAVES = 20  # of the heads in training
_LOWEST = -1e30  # the logit of a class that a data set lacks


class GridState(NamedTuple):
    """The classifiers in training."""

    step: jax.Array
    heads: dict[str, Heads]
    velocity: dict[str, Heads]
    num_left_out: jax.Array  # images that were left out, as their features were not finite
    learned_Y: jax.Array  # images of each class that were learned from, over all steps


class GridScores(NamedTuple):
    """The metrics of the R classifiers of an input on a split."""

    top1_R: np.ndarray
    top5_R: np.ndarray | None  # None: five classes or fewer
    loss_R: np.ndarray
    images: int
    non_finite_R: np.ndarray


class LinearGrid(NamedTuple):
    """The inputs and the classes of a grid."""

    plan: Plan
    width: int  # D of the backbone
    has_mean: bool  # whether there are inputs with the mean patch
    num_classes: int
    mesh: jax.sharding.Mesh

    def inputs(self, batch: FeatureBatch) -> dict[str, jax.Array]:
        """The inputs of a batch by name."""
        mean_BxD = batch.mean_BxD if self.has_mean else None
        return linear_inputs(batch.cls_BxLxD, mean_BxD, self.plan.num_blocks)

    def widths(self) -> dict[str, int]:
        """The channels of each input."""
        one = jax.ShapeDtypeStruct((1, self.width), jnp.float32)
        cls = jax.ShapeDtypeStruct((1, max(self.plan.num_blocks), self.width), jnp.float32)
        shapes = jax.eval_shape(self.inputs, FeatureBatch(cls, one, one, one))
        return {name: shape.shape[1] for name, shape in shapes.items()}

    @property
    def num_heads(self) -> int:
        """The number of classifiers."""
        return len(self.widths()) * len(self.plan.learning_rates)


def train_grid(
    grid: LinearGrid,
    batches: Callable[[int], Iterator[FeatureBatch]],
    *,
    seed: int,
    saved: SavedHead | None,
    say: Callable[[str], None],
) -> GridState:
    """The classifiers after the last step, float32, on every device.

    `batches` gives the training batches from a step on. A training that was interrupted continues from
    `saved`, and ends with the same values.
    """
    plan, everywhere = grid.plan, replicated(grid.mesh)
    state = jax.jit(functools.partial(_init, grid, seed), out_shardings=everywhere)()
    if saved is not None and (found := restore_head(saved, state, grid.mesh)) is not None:
        state = put_same(found, everywhere)
    start = int(state.step)
    rate_R = jnp.asarray(plan.learning_rates, jnp.float32)
    update = _compiled_step(grid)
    pace = Pace(f"training {grid.num_heads} classifiers", plan.num_steps, say, unit="steps", first=start)
    every, before = -(-plan.num_steps // _SAVES), None
    steps = range(start + 1, plan.num_steps + 1)
    for step, batch in zip(steps, batches(start), strict=False):  # batches have no end
        state, loss = update(state, batch, rate_R)
        if before is not None:  # at most two steps are under way
            jax.block_until_ready(before)
            pace.done(step - 1)
        before = loss
        if saved is not None and step % every == 0 and step < plan.num_steps:
            write_head(saved, state)
    return state


def _init(grid: LinearGrid, seed: int) -> GridState:
    rates, zero = len(grid.plan.learning_rates), jnp.zeros((), jnp.int32)
    heads = init_heads(jax.random.key(seed), grid.widths(), num_rates=rates, num_classes=grid.num_classes)
    learned_Y = jnp.zeros(grid.num_classes, jnp.int32)
    return GridState(zero, heads, jax.tree.map(jnp.zeros_like, heads), zero, learned_Y)


@functools.lru_cache(maxsize=4)
def _compiled_step(grid: LinearGrid) -> Callable[..., tuple[GridState, jax.Array]]:
    """A function (state, batch, peak rates) -> (state after a step, its loss)."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=replicated(grid.mesh))
    def step(state: GridState, batch: FeatureBatch, rate_R: jax.Array) -> tuple[GridState, jax.Array]:
        inputs, is_finite_B = grid.inputs(batch), jnp.ones(len(batch.mask_B), bool)
        for x_BxD in inputs.values():
            is_finite_B &= jnp.isfinite(x_BxD).all(axis=-1)
        inputs = {name: jnp.where(is_finite_B[:, None], x_BxD, 0.0) for name, x_BxD in inputs.items()}
        mask_B, label_B = batch.mask_B & is_finite_B, jnp.maximum(batch.label_BxK[:, 0], 0)
        now_R = rates_at(state.step, grid.plan.num_steps, rate_R)
        heads, velocity, loss = grid_step(state.heads, state.velocity, inputs, label_B, mask_B, now_R)
        left_out = state.num_left_out + (batch.mask_B & ~is_finite_B).sum(dtype=jnp.int32)
        learned_Y = state.learned_Y.at[label_B].add(mask_B.astype(jnp.int32))
        return GridState(state.step + 1, heads, velocity, left_out, learned_Y), loss

    return step


def score_grid(
    grid: LinearGrid,
    heads: Mapping[str, Heads],
    batches: Iterable[FeatureBatch],
    classes: Sequence[int] | None = None,
) -> dict[str, GridScores]:
    """The metrics of all classifiers on a split, by input, with every label of an image right.

    With `classes`, only these are predicted, as for data sets that have some of the classes of training. The
    loss is that of the uniform distribution over the right labels.
    """
    count = _compiled_scores(grid, None if classes is None else tuple(classes))
    parts = map(jax.device_get, in_turn(count(heads, batch) for batch in batches))  # a split has images
    scores = {}
    for name, sums in functools.reduce(functools.partial(jax.tree.map, np.add), parts).items():
        number = max(int(sums["top1"][1][0]), 1)
        top5 = sums["top5"][0] / number if "top5" in sums else None
        top1, loss = sums["top1"][0] / number, sums["loss"][0] / number
        scores[name] = GridScores(top1, top5, loss, int(sums["top1"][1][0]), sums["non_finite"][0])
    return scores


@functools.lru_cache(maxsize=16)
def _compiled_scores(grid: LinearGrid, classes: tuple[int, ...] | None) -> Callable[..., Any]:
    """A function (heads, batch) -> {input: sums of classification_sums, each with an axis of classifiers}."""
    is_there_Y = np.isin(np.arange(grid.num_classes), classes) if classes is not None else None

    @functools.partial(jax.jit, out_shardings=replicated(grid.mesh))
    def count(heads: Mapping[str, Heads], batch: FeatureBatch) -> dict[str, Any]:
        is_right_BxY = jax.nn.one_hot(batch.label_BxK, grid.num_classes).sum(axis=1)
        target_BxY = is_right_BxY / jnp.maximum(is_right_BxY.sum(axis=-1, keepdims=True), 1.0)

        def one(logit_BxY: jax.Array) -> Any:
            if is_there_Y is not None:
                logit_BxY = jnp.where(is_there_Y[None], logit_BxY, _LOWEST)
            loss_B = -jnp.where(target_BxY > 0, target_BxY * jax.nn.log_softmax(logit_BxY), 0.0).sum(axis=-1)
            return classification_sums(logit_BxY, batch.label_BxK, batch.mask_B, loss_B)

        return {
            name: jax.vmap(one, in_axes=1)(x) for name, x in grid_logits(heads, grid.inputs(batch)).items()
        }

    return count
