"""In which order examples are seen: a pure function of (seed, position), so that a run resumes exactly.

A position counts training examples since the start of the run, over all epochs: the global batch of
step s holds the positions [s * B, (s + 1) * B), and process p of n holds the p-th of n equal slices
of it. Pure numpy, shared by both loaders, so that both show random-access data in the same order.
"""

import dataclasses
import functools

import numpy as np

from vit_registers.config import Config, check_section
from vit_registers.errors import ConfigError


@functools.lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a training split. Every epoch has a uniform permutation of its own.

    With `repeats` > 1, an image comes so many times in a row and an epoch still has as many examples as
    the split, so that it shows the first part of its permutation only (repeated augmentation,
    arXiv:1902.05509, as in DeiT's code). Within a batch such neighbours are dealt to `groups` in turn, the
    equal parts that are mixed apart, as that code deals them to processes.
    With `drop_last`, an epoch ends with its last whole batch.
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
        """How many positions an epoch has."""
        return self.num_examples - self.num_examples % self.batch_size * self.drop_last

    def records(self, position_B: np.ndarray) -> np.ndarray:
        """The record number in [0, num_examples) at each position, record_B, int64."""
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


def training_order(config: Config, num_examples: int) -> Order:
    """The order of the training split. Raises ConfigError for settings that do not fit it."""
    data = config.data
    check_section("data", data)
    if data.repeats > data.batch_size:
        raise ConfigError(
            f"data.repeats={data.repeats} is more than data.batch_size={data.batch_size}: batches would "
            "be of one image"
        )
    if data.drop_last and num_examples < data.batch_size:
        raise ConfigError(
            f"data.drop_last with data.batch_size={data.batch_size}: "
            f"the {num_examples} examples of '{data.train_split}' make no whole batch"
        )
    return Order(
        seed=config.run.seed,
        num_examples=num_examples,
        batch_size=data.batch_size,
        repeats=data.repeats,
        groups=config.objective.classification.mix_groups,
        drop_last=data.drop_last,
    )


def share(batch_size: int, process_count: int, *, where: str) -> int:
    """How many examples of a global batch one process holds. Raises ConfigError when it is not whole."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"{where}={batch_size}: want a positive multiple of the {process_count} processes")
    return batch_size // process_count


def num_positions(num_examples: int, batch_size: int, *, process_index: int, process_count: int) -> int:
    """How many of the positions [0, num_examples) lie in this process's slices of the batches."""
    local_size = batch_size // process_count
    full_batches, rest = divmod(num_examples, batch_size)
    return full_batches * local_size + min(max(rest - process_index * local_size, 0), local_size)


def share_of_records(num_examples: int, *, process_index: int, process_count: int) -> tuple[int, int]:
    """The records [start, stop) of a process that reads a part of its own; parts differ by one at most."""
    return (
        num_examples * process_index // process_count,
        num_examples * (process_index + 1) // process_count,
    )
