"""Differences between cells of a sweep, paired by seed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from vit_registers.errors import ConfigError
from vit_registers.runs.sweep_cells import Cell, Labels, find_cell, values_by_seed

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The difference of two cells over the seeds that both have. None: undefined, as with one seed."""

    labels: Labels
    other: Labels
    num_seeds: int
    mean: float | None  # of `labels` minus `other`, in the unit of the table
    half_width: float | None  # of the 95 % interval of Student's t
    p: float | None  # two-sided, of the paired t-test


def paired_difference(values: Sequence[float], others: Sequence[float]) -> tuple[float | None, ...]:
    """(mean, half of the width of the 95 % interval, p) of paired values; None: undefined.

    They are those of the paired t-test: its interval assumes that differences are normal, and does not
    account for other tests. Without a spread there is no p and no interval.
    """
    difference = np.subtract(values, others)
    if not len(difference):
        return None, None, None
    mean, count = float(difference.mean()), len(difference)
    error = float(difference.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    if error == 0.0:
        return mean, None, None
    student = scipy.stats.t(count - 1)
    return mean, error * float(student.ppf((1 + CONFIDENCE) / 2)), 2 * float(student.sf(abs(mean) / error))


def paired_differences(
    cells: Sequence[Cell],
    pairs: Sequence[tuple[Labels, Labels]],
    *,
    config: str,
    metric: str,
    which: str,
) -> list[PairedDifference]:
    """The difference of each pair of cells. Raises ConfigError for what is no pair of labels of cells."""
    found = []
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(labels, Mapping) for labels in pair):
            raise ConfigError(f"{config}: comparisons() returns {pair!r}: two dicts of labels are required")
        first, second = (
            values_by_seed(find_cell(cells, labels, config, "comparisons()"), metric, which)
            for labels in pair
        )
        seeds = [seed for seed in first if seed in second]
        mean, half_width, p = paired_difference(
            [first[seed] for seed in seeds], [second[seed] for seed in seeds]
        )
        found.append(
            PairedDifference(
                labels=pair[0], other=pair[1], num_seeds=len(seeds), mean=mean, half_width=half_width, p=p
            )
        )
    return found
