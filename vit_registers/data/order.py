"""In which order examples are seen: a pure function of (seed, position), so that a run resumes exactly.

A position counts training examples since the start of the run, over all epochs: the global batch of
step s holds the positions [s * B, (s + 1) * B), and process p of n holds the p-th of n equal slices
of it. Pure numpy, shared by both loaders, so that both show random-access data in the same order.
"""

import functools

import numpy as np

from vit_registers.errors import ConfigError


@functools.lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(num_examples)
    order.setflags(write=False)
    return order


def shuffled_records(position_B: np.ndarray, *, seed: int, num_examples: int) -> np.ndarray:
    """The record number in [0, num_examples) at each position, record_B, int64.

    Every epoch is a permutation of its own, drawn uniformly from (seed, epoch).
    """
    epoch_B, offset_B = np.divmod(np.asarray(position_B, np.int64), num_examples)
    record_B = np.empty_like(offset_B)
    for epoch in np.unique(epoch_B):
        here_B = epoch_B == epoch
        record_B[here_B] = _permutation(seed, int(epoch), num_examples)[offset_B[here_B]]
    return record_B


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
