"""The contract of an objective: what is minimised, and what is kept beside the trained parameters."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax

from vit_registers.data.batch import Batch

# {name: (sum, count)}: the mean of `name` is sum / count. Sums of parts add up to those of the whole.
Sums = Mapping[str, tuple[jax.Array, jax.Array]]
BACKBONE = "vit"  # the key of the Vision Transformer in the parameters of every objective


def add_sums(a: Sums, b: Sums) -> Sums:
    """The sums over the examples of both."""
    return jax.tree.map(operator.add, a, b)


@dataclasses.dataclass(frozen=True)
class Best:
    """The metric of an evaluation that ranks the checkpoints of a run."""

    metric: str  # of the first evaluator
    label: str  # in tables
    is_higher_better: bool = True
    is_fraction: bool = False  # tables have it in percent

    def score(self, metrics: Mapping[str, float | None]) -> float | None:
        """The score of an evaluation, higher is better; None if it has no number for the metric."""
        value = metrics.get(self.metric)
        if value is None:
            return None
        return value if self.is_higher_better else -value


class Objective(Protocol):
    """One way to train a backbone. Built once from a Config; pure functions of arrays from then on.

    `params` is a nested dict of float32 arrays with the backbone under BACKBONE; heads and other modules lie
    beside it. `extra` is a dict of arrays that no gradient trains, such as a momentum teacher or a centre; {}
    if there are none. It is saved, restored and, where it has the structure of parameters, sharded like them.
    """

    best: ClassVar[Best]
    views: ClassVar[tuple[str, ...]]  # names of the views that a batch must have
    targets: ClassVar[tuple[str, ...]]  # names of the targets that it must have
    is_additive: ClassVar[bool]  # the loss of a batch is the sum of those of its parts; else no accumulation

    def __init__(self, config: Any) -> None:
        """From a Config. Checks nothing: the config of a checkpoint is of the past."""
        ...

    def check(self) -> None:
        """Raises ConfigError for settings that cannot be trained with."""
        ...

    def init(self, key: jax.Array, backbone: Any = None) -> tuple[Any, Any]:
        """(params, extra) before the first step. With `backbone`, its parameters are those."""
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch as `loss` takes it: normalised, mixed or cropped on the device.

        Called once for a whole batch, before it is split into the micro-batches of gradient accumulation.
        """
        ...

    def loss(
        self, params: Any, extra: Any, batch: Batch, step: jax.Array, key: jax.Array
    ) -> tuple[Sums, Any]:
        """The sums of a prepared batch over the examples of mask_B, and the new `extra`.

        The gradient is that of sums["loss"]; the other entries are reported as means. `step` is the number of
        steps before this one, int32.
        """
        ...

    def after_update(self, params: Any, extra: Any, step: jax.Array) -> Any:
        """The `extra` after the optimiser has changed the parameters to `params` in that step."""
        ...

    def eval_params(self, params: Any, extra: Any) -> Any:
        """The parameters that are evaluated, loaded and exported: the given ones or, say, the teacher's."""
        ...
