"""The interface of an objective: its loss, and its state beside the trained parameters."""

import dataclasses
import math
import operator
from collections.abc import Container, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax

from vit_registers.data.batch import Batch, MakeTarget, Texts, View

# {name: (sum, count)}: the mean of `name` is sum / count. The sums of parts add to those of the whole.
Sums = Mapping[str, tuple[jax.Array, jax.Array]]
BACKBONE = "vit"  # the key of the Vision Transformer in the parameters of every objective
TEACHER = (
    "teacher"  # the key in `extra` of a copy of the parameters that the trained ones, its student, follow
)


def add_sums(a: Sums, b: Sums) -> Sums:
    """The sums over the examples of both arguments."""
    return jax.tree.map(operator.add, a, b)


def find_non_finite(metrics: Mapping[str, float | None]) -> str | None:
    """A text that names what is not finite in an evaluation; None if all metrics are finite.

    `metrics` are those of one evaluator; None is a number that is not finite, as in JSON. "non_finite", if
    present, is how many of the "images" have outputs that are not finite.
    """
    if number := metrics.get("non_finite"):
        return f"the logits of {number:g} of {metrics['images']:g} images are not finite; they count as wrong"
    for name, value in metrics.items():
        if value is None or not math.isfinite(value):
            return f"the {name} is not finite"
    return None


@dataclasses.dataclass(frozen=True)
class Best:
    """The metric of an evaluation that ranks the checkpoints of a run."""

    metric: str  # of the first evaluator
    label: str  # in tables
    is_higher_better: bool = True
    is_fraction: bool = False  # tables show it in percent
    otherwise: "Best | None" = None  # what ranks evaluations of data for which the metric is not defined

    def among(self, names: Container[str]) -> "Best":
        """What ranks evaluations with the metrics `names`: itself, or `otherwise` if only that is there."""
        if self.metric in names or self.otherwise is None or self.otherwise.metric not in names:
            return self
        return self.otherwise

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """The score of an evaluation, where higher is better.

        None if it lacks the metric, or if any of its metrics is not finite: it is then never the best.
        """
        own = self.among(metrics)
        value = metrics.get(own.metric)
        if value is None or find_non_finite(metrics):
            return None
        return value if own.is_higher_better else -value


class Objective(Protocol):
    """A way to train a backbone. Built once from a Config; its methods are pure functions of arrays.

    `params` is a nested dict of float32 arrays with the backbone under BACKBONE; heads and other modules are
    beside it. `extra` is a dict of arrays without gradients, such as a momentum teacher or a centre; {} if
    there are none. It is saved and restored. Parts with the structure of parameters are sharded like them.
    """

    best: ClassVar[Best]
    targets: ClassVar[tuple[str, ...]]  # names of the targets that a batch must have
    # The loss of a batch is the sum over its parts. Accumulation requires it, or else InParts.
    is_additive: ClassVar[bool]

    @property
    def views(self) -> Mapping[str, View]:
        """The views of a training batch by name, and how they are made."""
        ...

    @property
    def host_targets(self) -> Mapping[str, MakeTarget]:
        """The targets besides the label, which are made on the host."""
        ...

    def __init__(self, config: Any) -> None:
        """From a Config, without checks: an older version may have trained with it."""
        ...

    def check(self) -> None:
        """Raises ConfigError for settings with which training is not possible."""
        ...

    def init(self, key: jax.Array, backbone: Any = None, heads: Any = None) -> tuple[Any, Any]:
        """(params, extra) before the first step. `backbone`, if given, has the parameters of the backbone.

        `heads`, if given, are all other modules of the parameters by name; only to objectives that have some.
        """
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The input of `loss`: the batch, normalised, mixed or cropped on the device.

        Called once for a whole batch, before it is split into the micro-batches of gradient accumulation.
        """
        ...

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """(sums over the examples of a prepared batch in mask_B, new `extra`).

        The gradient is that of sums["loss"]; the other entries are reported as means. `step` is the number of
        steps before this one, int32.
        """
        ...

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """The `extra` after that step, in which the optimiser has changed the parameters to `params`."""
        ...

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters to evaluate, load and export: the given ones or, for example, those of a teacher."""
        ...


@runtime_checkable
class HasTexts(Protocol):
    """What an objective of images and texts has beside: what the loaders make of captions."""

    @property
    def texts(self) -> Texts:
        """The target TOKENS of training batches."""
        ...


@runtime_checkable
class InParts(Protocol):
    """What an objective that is not additive may have beside: a loss that supports accumulation."""

    def loss_in_parts(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array, *, num_parts: int
    ) -> tuple[Sums, Any]:
        """What Objective.loss returns for the whole batch, with the activations of one part in memory.

        Only drop path differs, whose draws are those of micro-batches.
        """
        ...


@runtime_checkable
class Bounded(Protocol):
    """What an objective may have beside: bounds of parameters."""

    def bound(self, params: Any) -> Any:
        """The parameters after an update, of which those outside of their bounds are moved to these."""
        ...
