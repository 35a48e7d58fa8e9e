"""The training of a head with a loss for each pixel, on a frozen backbone."""

import collections
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_registers.data.order import Order
from vit_registers.errors import ConfigError, TrainingError
from vit_registers.evaluation.dense.examples import (
    DenseBatch,
    Examples,
    in_threads,
    own_places,
    put_shares,
    stack,
    train_batches,
)
from vit_registers.evaluation.dense.saved import SavedHead, restore_head, write_head
from vit_registers.evaluation.pace import Pace
from vit_registers.runtime.exchange import from_first
from vit_registers.training.sharding import batch_sharding, put_same, replicated

_MAX_CACHED_BYTES = 4 << 30  # features on the host
_SAVE_EVERY_S = 20.0
_IN_FLIGHT = 8  # steps that are not complete yet

# (backbone, images uint8, their sizes) -> features with an axis of images, without gradient
Features = Callable[[Any, jax.Array, jax.Array], jax.Array]
# (head, statistics, features, labels, key, step) -> (loss, statistics)
Loss = Callable[[Any, Any, jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
Init = Callable[[jax.Array], tuple[Any, Any]]  # key -> (head, statistics), float32


class Recipe(NamedTuple):
    """How a head is trained."""

    init: Init
    loss: Loss
    optimizer: optax.GradientTransformation
    num_steps: int
    batch_size: int  # global
    seed: int


class HeadState(NamedTuple):
    """A head in training. `first_bad` are the first steps with a loss and with features not finite, or -1."""

    step: jax.Array
    head: Any
    statistics: Any
    moments: Any
    first_bad_2: jax.Array


class HeadTrainer:
    """Trains heads of one recipe, on features of several backbones of one architecture.

    The backbone takes no part in the differentiation, so that none of its activations is kept. Batches are
    split over the axes data and fsdp of the mesh, and the head is on every device.
    """

    def __init__(self, recipe: Recipe, features: Features, mesh: jax.sharding.Mesh, *, setting: str) -> None:
        """`setting` is the section of the settings, for messages. Raises ConfigError for the batch size."""
        layout = batch_sharding(mesh)
        try:
            layout.shard_shape((recipe.batch_size,))
        except ValueError:
            raise ConfigError(
                f"{setting}.batch_size={recipe.batch_size} does not divide over {layout.num_devices} devices"
            ) from None
        self._recipe, self._layout, self._setting = recipe, layout, setting
        everywhere = replicated(mesh)
        update = functools.partial(_update, recipe)

        def step(backbone: Any, state: HeadState, batch: DenseBatch) -> tuple[HeadState, jax.Array]:
            feature = features(backbone, batch.image_BxHxWxC, batch.size_Bx2)
            return update(state, jax.lax.stop_gradient(feature), batch.label_BxHxW)

        self._init = jax.jit(functools.partial(_init, recipe), out_shardings=everywhere)
        self._step = jax.jit(step, donate_argnums=1, out_shardings=everywhere)
        self._update = jax.jit(update, donate_argnums=0, out_shardings=everywhere)
        self._features = jax.jit(
            lambda backbone, batch: (
                features(backbone, batch.image_BxHxWxC, batch.size_Bx2),
                batch.label_BxHxW,
            ),
            out_shardings=everywhere,
        )
        self._mesh, self._everywhere = mesh, everywhere

    def train(
        self,
        backbone: Any,
        examples: Examples,
        *,
        what: str,
        saved: SavedHead | None,
        say: Callable[[str], None],
    ) -> tuple[Any, Any]:
        """(head, statistics) after the last step.

        `what` is trained, as progress and errors name it. A run that was interrupted continues from `saved`,
        and ends with the same bits. Raises TrainingError if the loss or the features are not finite.
        """
        recipe, state = self._recipe, self._init()
        if saved is not None and from_first(saved.path.exists, self._mesh):
            found = restore_head(saved, state, self._mesh)
            if found is None:
                say(f"{what}: {saved.path} is damaged or has a head of other settings: a new one is trained")
            else:
                state = put_same(found, self._everywhere)
                if int(state.step) < recipe.num_steps:
                    say(f"{what}: continues at step {int(state.step):,}")
        first = int(state.step)
        if first == recipe.num_steps:
            return state.head, state.statistics
        is_kept = not examples.is_random and self._fits(backbone, examples)
        steps = (self._cached_steps if is_kept else self._steps)(backbone, examples, first)
        pace = Pace(what, recipe.num_steps, say, unit="steps", first=first)
        written_s, losses = time.monotonic(), collections.deque()
        for done, take in enumerate(steps, first + 1):
            state, loss = take(state)
            losses.append(loss)
            if len(losses) > _IN_FLIGHT and not math.isfinite(losses.popleft()):
                self._check(state, what)
            pace.done(done)
            if saved is not None and time.monotonic() - written_s > _SAVE_EVERY_S:
                self._check(state, what)
                write_head(saved, state)
                written_s = time.monotonic()
        self._check(state, what)
        if saved is not None:
            write_head(saved, state)
        return state.head, state.statistics

    def _steps(self, backbone: Any, examples: Examples, first: int) -> Iterator[Any]:
        """A function for each step from `first` on: state -> (state, loss)."""
        steps = range(first, self._recipe.num_steps)
        for batch in train_batches(examples, self._order(examples), steps, self._layout):
            yield lambda state, batch=batch: self._step(backbone, state, batch)

    def _cached_steps(self, backbone: Any, examples: Examples, first: int) -> Iterator[Any]:
        """As `_steps`, with the features of each example computed once."""
        order, size = self._order(examples), self._recipe.batch_size
        feature_NxHxWxC, label_NxHxW = self._all_features(backbone, examples)
        for step in range(first, self._recipe.num_steps):
            rows = order.records(step * size + np.arange(size))
            pair = put_same((feature_NxHxWxC[rows], label_NxHxW[rows]), self._layout)
            yield lambda state, pair=pair: self._update(state, *pair)

    def _all_features(self, backbone: Any, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
        """(features, labels) of all examples, on the host. Each process makes its share of the examples."""
        number, size, features, labels = examples.number, self._recipe.batch_size, [], []
        places = np.array(own_places(size, self._layout))

        def tasks(start: int) -> list[tuple[Any, ...]]:
            records = np.minimum(start + places, number - 1)
            return [(examples.make, int(record), np.random.default_rng(0)) for record in records]

        put = functools.partial(put_shares, self._layout)
        for batch in in_threads(tasks, range(0, number, size), put):
            feature_BxHxWxC, label_BxHxW = self._features(backbone, batch)
            features.append(np.asarray(feature_BxHxWxC))
            labels.append(np.asarray(label_BxHxW))
        return np.concatenate(features)[:number], np.concatenate(labels)[:number]

    def _fits(self, backbone: Any, examples: Examples) -> bool:
        """Whether the features of all examples are few enough to be kept."""
        batch = stack([examples.make(0, np.random.default_rng(0))])
        shape, _ = jax.eval_shape(self._features, backbone, batch)
        return examples.number * shape.size * shape.dtype.itemsize <= _MAX_CACHED_BYTES

    def _order(self, examples: Examples) -> Order:
        recipe = self._recipe
        return Order(seed=recipe.seed, num_examples=examples.number, batch_size=recipe.batch_size)

    def _check(self, state: HeadState, what: str) -> None:
        loss, features = (int(step) for step in state.first_bad_2)
        if features >= 0:
            raise TrainingError(
                f"{what}: its features are not finite from step {features} on, so no head fits"
            )
        if loss >= 0:
            rate = f"{self._setting}.learning_rate"
            raise TrainingError(
                f"{what}: the loss of the head is not finite from step {loss} on: lower {rate}"
            )


def _init(recipe: Recipe) -> HeadState:
    head, statistics = recipe.init(jax.random.key(recipe.seed))
    moments = recipe.optimizer.init(head)
    return HeadState(jnp.zeros((), jnp.int32), head, statistics, moments, jnp.full(2, -1, jnp.int32))


def _update(
    recipe: Recipe, state: HeadState, feature_BxHxWxC: jax.Array, label_BxHxW: jax.Array
) -> tuple[HeadState, jax.Array]:
    """(state, loss) after a step."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
    (loss, statistics), grads = jax.value_and_grad(recipe.loss, has_aux=True)(
        state.head, state.statistics, feature_BxHxWxC, label_BxHxW, key, state.step
    )
    updates, moments = recipe.optimizer.update(grads, state.moments, state.head)
    is_bad_2 = jnp.stack([~jnp.isfinite(loss), ~jnp.isfinite(feature_BxHxWxC).all()])
    first_bad_2 = jnp.where((state.first_bad_2 < 0) & is_bad_2, state.step, state.first_bad_2)
    head = optax.apply_updates(state.head, updates)
    return HeadState(state.step + 1, head, statistics, moments, first_bad_2), loss
