"""What a run has lost in comparison with one that was never disturbed."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_registers.runs.checkpoint_folder import checkpoint_root, find_step_damage, list_steps
from vit_registers.runs.metrics_log import read_records
from vit_registers.storage import paths

_TIMES = "time_s"  # in the records that differ between equal runs


class Comparison(NamedTuple):
    """The result of `compare`."""

    lost: list[str]  # a line for each kind of difference; empty if nothing was lost
    largest: float  # difference between two numbers of the final states


def newest_saved(run: str) -> int:
    """The newest step with an intact checkpoint; 0 if there is none."""
    return next((step for step in list_steps(run) if find_step_damage(run, step) is None), 0)


def compare(run: str, reference: str, *, step: int, tolerance: float) -> Comparison:
    """Compares metrics.jsonl, without times, and the states of the checkpoints of `step`.

    With `tolerance` 0, all numbers must be equal. Otherwise it is the largest absolute difference, and that
    of the metrics relative to 1 or to their size, whichever is greater.
    """
    lost = _compare_metrics(_records(run), _records(reference), tolerance)
    if (damage := find_step_damage(run, step)) is not None:
        return Comparison([*lost, f"the checkpoint of step {step}: {damage}"], math.inf)
    largest, wrong = 0.0, []
    want = _state(reference, step)
    found = _state(run, step)
    if found.keys() != want.keys():
        return Comparison([*lost, f"parts of the state: {sorted(found.keys() ^ want.keys())}"], math.inf)
    for name, value in want.items():
        difference = _difference(found[name], value)
        largest = max(largest, difference)
        if difference > tolerance:
            wrong.append(name)
    if wrong:
        lost.append(f"the state of step {step}: {len(wrong)} of {len(want)} arrays differ, as {wrong[0]}")
    return Comparison(lost, largest)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if np.array_equal(a, b):
        return 0.0
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _state(run: str, step: int) -> dict[str, np.ndarray]:
    path = checkpoint_root(run) / str(step) / "state"
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    shapes = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(where): np.asarray(leaf) for where, leaf in leaves}


def _records(run: str) -> list[dict[str, Any]]:
    return [record for record in read_records(paths.folder(run)).records if _TIMES not in record]


def _key(record: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    return record["step"], tuple(record)


def _compare_metrics(found: list[dict], want: list[dict], tolerance: float) -> list[str]:
    lines = []
    there, wanted = Counter(map(_key, found)), Counter(map(_key, want))
    for what, keys in (("missing", wanted - there), ("too many", there - wanted)):
        if keys:
            steps = sorted({step for step, _ in keys})
            lines.append(f"metrics.jsonl: records {what}: {keys.total()}, of steps {_listed(steps)}")
    by_key = {_key(record): record for record in found}
    pairs = [(by_key[_key(record)], record) for record in want if _key(record) in by_key]
    if steps := [record["step"] for own, record in pairs if not _is_close(own, record, tolerance)]:
        lines.append(f"metrics.jsonl: records that differ: {len(steps)}, of steps {_listed(sorted(steps))}")
    if not lines and [*map(_key, found)] != [*map(_key, want)]:
        lines.append("metrics.jsonl: the order of the records differs")
    return lines


def _is_close(found: Mapping[str, Any], want: Mapping[str, Any], tolerance: float) -> bool:
    for name, value in want.items():
        if found[name] == value:
            continue
        if found[name] is None or value is None:
            return False
        # Rounding may change the class of an image.
        one_image = 1 / want[f"{name.rpartition('/')[0]}/images"] if name.endswith(("top1", "top5")) else 0.0
        if not tolerance or abs(found[name] - value) > tolerance * max(1.0, abs(value)) + one_image:
            return False
    return True


def _listed(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:5]))
    return shown if len(steps) <= 5 else f"{shown} and {len(steps) - 5} more"
