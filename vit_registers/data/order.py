"""The order of examples: a pure function of (seed, position), so that a run resumes exactly.

A position counts training examples since the start of the run, over all epochs. The global batch of step s
holds the positions [s * B, (s + 1) * B), and process p of n holds the p-th of n equal slices of it. Both
loaders use this order for data with random access. Pure numpy.
"""

import dataclasses
import functools

import numpy as np

from vit_registers.config import Data, check_section
from vit_registers.errors import ConfigError


@functools.lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a training split. Every epoch has its own uniform permutation.

    With `repeats` > 1 (repeated augmentation, arXiv:1902.05509, as in DeiT's code), an image occurs `repeats`
    times in a row, and an epoch, which is no longer, covers only the first part of its permutation. The
    copies in a batch are dealt to `groups` in turn, the equal parts that are mixed separately, as that code
    deals them to processes. With `drop_last`, an epoch ends with its last whole batch.
    """

    seed: int
    num_examples: int
    batch_size: int
    repeats: int = 1
    groups: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        assert self.batch_size % self.groups == 0, (self.batch_size, self.groups)

    @property
    def epoch_size(self) -> int:
        """The number of positions in an epoch."""
        return self.num_examples - self.num_examples % self.batch_size * self.drop_last

    def records(self, position_B: np.ndarray) -> np.ndarray:
        """The record in [0, num_examples) at each position, record_B, int64."""
        position_B = np.asarray(position_B, np.int64)
        if self.repeats > 1:
            batch_B, place_B = np.divmod(position_B, self.batch_size)
            group_B, member_B = np.divmod(place_B, self.batch_size // self.groups)
            position_B = batch_B * self.batch_size + member_B * self.groups + group_B
        epoch_B, offset_B = np.divmod(position_B, self.epoch_size)
        record_B = np.empty_like(offset_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            permutation = _permutation(self.seed, int(epoch), self.num_examples)
            record_B[here_B] = permutation[offset_B[here_B] // self.repeats]
        return record_B


def training_order(data: Data, num_examples: int, *, seed: int, groups: int) -> Order:
    """The order of the training split; `groups` parts of a batch are mixed separately. Raises ConfigError."""
    check_section("data", data)
    if data.repeats > data.batch_size:
        raise ConfigError(
            f"data.repeats={data.repeats} is more than data.batch_size={data.batch_size}: a batch would "
            "be copies of one image"
        )
    if data.drop_last and num_examples < data.batch_size:
        raise ConfigError(
            f"data.drop_last with data.batch_size={data.batch_size}: "
            f"the {num_examples} examples of '{data.train_split}' are fewer than one batch"
        )
    return Order(
        seed=seed,
        num_examples=num_examples,
        batch_size=data.batch_size,
        repeats=data.repeats,
        groups=groups,
        drop_last=data.drop_last,
    )


def share(batch_size: int, process_count: int, *, where: str) -> int:
    """The number of examples of a global batch that one process holds. Raises ConfigError for a fraction."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"{where}={batch_size}: must be a positive multiple of the {process_count} processes"
        )
    return batch_size // process_count
