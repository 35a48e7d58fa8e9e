"""Values that change over a run, as tables over its steps: the schedules of DINOv2's code, in float64.

Weight decay, the momentum of a teacher, its temperature and the learning rates of self-distillation are such
tables. They differ from schedules.py: the warm-up includes its end point, so the peak is used twice in a row.
"""

import numpy as np


def cosine_table(
    *, start: float, end: float, num_steps: int, warmup_steps: int = 0, frozen_steps: int = 0
) -> np.ndarray:
    """`num_steps` values: zeros, a line from 0 to `start`, both ends included, then half a cosine to `end`.

    The cosine is end + (start - end) (1 + cos(pi i / m)) / 2 for i = 0 to m - 1, so `end` itself is the value
    after the last step. The first `frozen_steps` values are set to 0 afterwards, as for the last layer of a
    head, whose other values are those of the rest.
    """
    length = num_steps - warmup_steps
    assert length > 0, (num_steps, warmup_steps)
    # sin² of half the angle that is left equals (1 + cos) / 2, without the cancellation near the end.
    left = 0.5 * np.pi * (length - np.arange(length)) / length
    table = np.concatenate((np.linspace(0.0, start, warmup_steps), end + (start - end) * np.sin(left) ** 2))
    table[:frozen_steps] = 0.0
    return table


def line_table(*, start: float, end: float, num_steps: int) -> np.ndarray:
    """`num_steps` values on a line from `start` to `end`, both included; `end` alone for one step."""
    return np.linspace(start, end, num_steps) if num_steps > 1 else np.full(max(num_steps, 1), end)
